"""A model folder in 8-bit floats, in the layout of compressed-tensors, which vLLM reads as it is.

    M.weight         float8_e4m3fn [N, K]       round(W / s)
    M.weight_scale   float32 [N, 1]             s = the row's largest value / 448, e4m3's largest

Linear layers of the decoder are in 8 bits; embedding, head, norms and what routes to experts stay in 16. What they are
multiplied with is rounded while the model runs, token by token, so there is nothing to calibrate. Rows know nothing of
each other: merged and rounded once, a folder of this kind is within half a step of the 16-bit one.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from hasten.errors import CapabilityError
from hasten.export.hf.base import Opened
from hasten.export.hf.ends import ends_of
from hasten.export.hf.settings import chosen_dtype, with_dtype
from hasten.export.hf.shards import Piece, Progress
from hasten.export.hf.write import MAX_SHARD, PlainFormat, Written, require_finite, write_as
from hasten.export.weights import Weights
from hasten.kernels.fp8.op import quantize_rows

_LAYERS = ".layers."
_ROUTERS = (".gate.weight", ".router.weight", ".shared_expert_gate.weight")
_SETTINGS: dict[str, Any] = {
    "num_bits": 8,
    "type": "float",
    "symmetric": True,
    "group_size": None,
    "block_structure": None,
    "actorder": None,
    "observer_kwargs": {},
}


def write_fp8(
    opened: Opened, folder: Path, *, max_shard_size: str | int = MAX_SHARD, progress: Progress | None = None
) -> Written:
    """Write a model folder in 8-bit floats.

    Args:
        opened: what is written.
        folder: where to; one that holds an older result of the same kind is replaced.
        max_shard_size: most bytes in a file: a number, or ``"5GB"``.
        progress: told bytes done, and in all.

    Raises:
        CapabilityError: the model has no linear layers by names that are known here, or experts in one tensor.
        ConfigError: an unknown size, or a folder that holds something else.
        ModelError: as `hasten.export.hf.write.write_model`.
        StorageError: the disk is full or not writable, or what was read back is not what was written.
    """
    made = Fp8Format(opened.weights)
    return write_as(opened, folder, made, max_shard_size=max_shard_size, progress=progress)


class Fp8Format:
    """Linear layers in 8-bit floats, the rest in 16 bits.

    Args:
        weights: the model; only names and shapes are looked at.

    Raises:
        CapabilityError: as `write_fp8`.
    """

    def __init__(self, weights: Weights) -> None:
        ends = ends_of(weights.shapes)
        layers = {name: shape for name, shape in weights.shapes.items() if _LAYERS in name and name not in ends}
        if stacked := next((name for name, shape in layers.items() if len(shape) > 2), None):
            raise CapabilityError(
                f"'{stacked}'",
                "experts in one tensor",
                "In 8 bits each expert has weights of its own.",
                "Export 16 bits; vLLM rounds them itself with --quantization fp8.",
            )
        wide = {name for name, shape in layers.items() if len(shape) == 2 and name.endswith(".weight")}
        self.linear = frozenset(name for name in wide if not name.endswith(_ROUTERS))
        if not self.linear:
            raise CapabilityError(
                f"model_type '{weights.config.get('model_type')}'",
                "no linear layers by the names that decoders have",
                "Linear layers are what is kept in 8 bits.",
                "Export 16 bits.",
            )
        head = ends[1].removesuffix(".weight")
        self.ignored = [head, *sorted(name.removesuffix(".weight") for name in wide - self.linear)]
        self.rest = PlainFormat(chosen_dtype(weights.config, None))
        self.said = f"float8_e4m3fn, one scale per output; {self.rest.said} where they are no linear layers"

    def pieces(self, name: str, shape: tuple[int, ...]) -> tuple[Piece, ...]:
        """Codes and scales, or the weight itself."""
        if name not in self.linear:
            return self.rest.pieces(name, shape)
        scale = Piece(f"{name}_scale", (shape[0], 1), torch.float32)
        return Piece(name, shape, torch.float8_e4m3fn), scale

    def encode(self, name: str, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Their values.

        Raises:
            ModelError: the weight holds NaN or infinity.
        """
        if name not in self.linear:
            return self.rest.encode(name, value)
        require_finite(name, value)
        codes, scale = quantize_rows(value.float())
        return codes, scale

    def config(self, config: dict[str, Any]) -> dict[str, Any]:
        """With the ``quantization_config`` of compressed-tensors."""
        made = with_dtype(config, self.rest.said)
        weights = {**copy.deepcopy(_SETTINGS), "strategy": "channel", "dynamic": False, "observer": "minmax"}
        activations = {**copy.deepcopy(_SETTINGS), "strategy": "token", "dynamic": True, "observer": None}
        group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
        made["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": {**group, "output_activations": None}},
            "ignore": self.ignored,
            "kv_cache_scheme": None,
            "global_compression_ratio": None,
        }
        return made
