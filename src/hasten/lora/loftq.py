"""Adapters that begin as what 4 bits lost (LoftQ).

    Q = NF4(W)                    the base, as loading makes it
    E = W - Q                     what was lost; W is read from the files that the base was made from
    s B0 A0 = U U^T E             the best approximation of rank r: U, the leading r eigenvectors of E E^T

Source: Li et al. 2023 (arXiv:2310.08659), one shot of it: they go on to quantize W - s B0 A0 and approximate again,
after which the base is one that nobody else has.

peft's `replace_lora_weights_loftq` makes the same step, but leaves out the scale s, needs a GPU, and looks for files by
rules of its own; merging knows already where the 16-bit weights are (`hasten.lora.originals`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hasten.errors import ConfigError
from hasten.kernels.row_scaled.rows import row_scaled_of
from hasten.loading.beginning import ADAPTER, factors_of, keep_beginning
from hasten.loading.four_bit import in_nf4
from hasten.lora.originals import Originals

LOFTQ = "loftq"
_SUBJECT = "init_lora_weights"


def require_originals(model: Any, targets: list[str], alpha: float, peft: Mapping[str, Any]) -> Originals:
    """The 16-bit weights behind what gets an adapter; what such a beginning does not go with is refused.

    Args:
        model: the base.
        targets: what gets an adapter.
        alpha: the adapter's strength.
        peft: further fields of `peft.LoraConfig`.

    Raises:
        ConfigError: weights that are not in NF4, or whose originals are not there; embedding or head, DoRA, adapted
            parameters, no strength.
    """
    _refuse_kinds(alpha, peft)
    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    wanted = {}
    for name, module in model.named_modules():
        if not any(name == target or name.endswith(f".{target}") for target in targets):
            continue
        if id(module) in ends:
            last = name.rpartition(".")[2]
            raise ConfigError(
                _SUBJECT,
                f"'{LOFTQ}' with target '{last}'",
                "Embedding and head are not kept in 4 bits.",
                f"Leave out '{last}'.",
            )
        if not in_nf4(module):
            raise ConfigError(
                _SUBJECT,
                f"'{LOFTQ}' with '{name}', {_kept_as(module)}",
                "It begins as what NF4 lost of the weights of linear layers.",
                "Load the 16-bit model with load_in_4bit, or leave it at its default.",
            )
        wanted[f"{name}.weight"] = tuple(module.weight.quant_state.shape)
    found = Originals.of(model, wanted)
    if found is None or found.missing:
        missing = next(iter(found.missing if found else wanted))
        raise ConfigError(
            _SUBJECT,
            f"'{LOFTQ}', but '{model.name_or_path}' holds no 16-bit original of '{missing}'",
            "What 4 bits lost is the difference to the files that the model was quantized from when it was loaded.",
            "Load the 16-bit model with load_in_4bit, or leave it at its default.",
        )
    return found


def begin(model: Any, originals: Originals) -> None:
    """Let a fresh adapter begin as what was lost, and remember with what it began.

    Args:
        model: a `PeftModel` on NF4 weights.
        originals: from `require_originals`.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit

    with torch.no_grad():
        for name, module in model.get_base_model().named_modules():
            if ADAPTER not in getattr(module, "lora_A", ()):
                continue
            weight = module.base_layer.weight
            kept = dequantize_4bit(weight.data, weight.quant_state)
            lost = originals.weight(f"{name}.weight", kept).double() - kept.double()
            a, b = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
            first, second = leading_part(lost / module.scaling[ADAPTER], rank=a.shape[0])
            # Rows of A beyond the rank of what was lost stay as peft made them: beside a zero in B they can learn.
            a[: len(second)] = second.to(a)
            b.zero_()
            b[:, : len(second)] = first.to(b)
    keep_beginning(model, factors_of(model))


def leading_part(matrix: Any, rank: int) -> tuple[Any, Any]:
    """The best approximation of a rank, as two factors of equal size.

    The eigenvectors of the smaller of its two square products take a fraction of the time of all singular vectors. The
    eigenvalues are squares, which is why this is done in float64.

    Args:
        matrix: float64 ``[N, K]``.
        rank: at most so many columns and rows.

    Returns:
        ``[N, R]`` and ``[R, K]``; R is smaller than `rank` where the matrix' own rank is.
    """
    import torch

    wide = matrix.shape[0] <= matrix.shape[1]
    side = matrix if wide else matrix.T
    vectors = torch.linalg.eigh(side @ side.T).eigenvectors[:, -rank:]  # by growing eigenvalue
    rest = vectors.T @ side
    sizes = rest.norm(dim=1)  # the singular values
    there = sizes > 0
    roots = sizes[there].sqrt()
    vectors, rest = vectors[:, there] * roots, rest[there] / roots[:, None]
    return (vectors, rest) if wide else (rest.T, vectors.T)


def _refuse_kinds(alpha: float, peft: Mapping[str, Any]) -> None:
    remedy = "Leave one of them out."
    if peft.get("use_dora"):
        rule = "DoRA divides by the norm of each row of base and adapter, so its adapter cannot make up for the base."
        raise ConfigError(_SUBJECT, f"'{LOFTQ}' with use_dora", rule, remedy)
    if peft.get("target_parameters"):
        rule = "Only modules have 4-bit weights."
        raise ConfigError(_SUBJECT, f"'{LOFTQ}' with target_parameters", rule, remedy)
    if not alpha:
        raise ConfigError(_SUBJECT, f"'{LOFTQ}' with alpha 0", "Such an adapter adds nothing.", "Raise alpha.")


def _kept_as(module: Any) -> str:
    from torch import nn

    state = getattr(getattr(module, "weight", None), "quant_state", None)
    if state is not None:
        return f"in {state.quant_type}"
    if row_scaled_of(module) is not None:
        return "in 8 bits"
    return "in 16 bits or more" if isinstance(module, nn.Linear) else f"of type {type(module).__name__}"
