"""Projections that read the same input, as one matrix product with their LoRA adapters inside it.

q, k and v (or gate and up) are rows of one weight W. An adapter adds B (A x). Both become one product when the weight
is widened by B's columns and the input by A x:

    y = [x, xA] [W, B]^T            xA = s x A^T, one small product for the group
    [dx', dxA] = dy [W, B]          so the gradient of xA costs nothing extra
    dx = dx' + dxA (s A)            dA = s dxA^T x            dB = dy^T xA

So an adapter never makes a pass over the output, as adding B (A x) afterwards does (a read and a write of y). For
several projections B is block-diagonal: each has its own columns.

The stored weights stay the model's parameters under their own names: they become views into the widened memory.
Nothing is copied in a step but the factors (they are trained, in their own dtype). Whoever moves or replaces a weight
breaks the view; that is noticed at the next forward, and the memory is made anew.

Weights that are kept in 4 or 8 bits are not joined: each use writes the group, with its factors beside it, into one
buffer that all groups of a model share (`hasten.blocks.quantized`). Those in 8-bit floats are, where products are made
of them as they are (`hasten.blocks.fp8`).

Shapes: M positions, K input width, N output width of the whole group, P widened columns (0 without adapters).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from hasten.blocks.fp8 import Operand8, Trained8, Weights8, weights_in_8_bits
from hasten.blocks.fp8 import refusal as refusal_8
from hasten.blocks.operand import Operand
from hasten.blocks.quantized import Factors, Mixed, Stored, Workspace, device_of, stored_of
from hasten.kernels.row_scaled.rows import RowScaled

_STEP = 16
"""The same where no weight lies beside them in memory (4-bit weights, 8-bit products): what products take."""
ALIGNED = {"cuda": 64}
"""Widened columns come in multiples of this on a device: 128 bytes of 16-bit values keep a GPU's rows aligned.
Elsewhere they are as many as the adapters have."""


@dataclass(eq=False)
class Compute8:
    """How products are made in 8-bit floats; one for all groups of a model."""

    turned: bool = True
    """Whether 16-bit weights keep a second, turned 8-bit copy."""
    workspace: Workspace = field(default_factory=Workspace)


@dataclass(eq=False)
class ProjectionGroup:
    """Projections of one layer that read the same input.

    What the modules are is looked at in every forward, by look-ups alone (`_Watch`); only a difference makes the rest
    anew.

    Args:
        modules: `nn.Linear` or a 4-bit one, or PEFT's LoRA layer on one, in the order of their outputs.
        workspace: where 4-bit weights are read; one for all groups of a model.
        compute8: products in 8-bit floats; None: in the weights' own dtype.
        writer: copies the factors of a whole model at once; None: each group copies its own.
    """

    modules: tuple[nn.Module, ...]
    workspace: Workspace = field(default_factory=Workspace)
    compute8: Compute8 | None = None
    writer: Any = None
    impl: str = "auto"
    factors: tuple[Factors, ...] = ()
    _watches: tuple[_Watch, ...] = field(default=(), repr=False)
    _refused: str | None = None
    _operand: Operand | None = field(default=None, repr=False)
    _storage: torch.Tensor | None = field(default=None, repr=False)
    _A: torch.Tensor | None = field(default=None, repr=False)
    _written: tuple[Any, ...] = field(default=(), repr=False)
    _values: tuple[Any, ...] = field(default=(), repr=False)
    """What copies were made of: they do not follow their weights. Changes through ``.data`` are not seen."""
    _made: tuple[Any, Weights8] | None = field(default=None, repr=False)
    """The 8-bit copies, and what they were made of."""

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are kept in; of 4-bit ones, what they were before."""
        return dtype_of(base_of(self.modules[0]))

    def refusal(self) -> str | None:
        """Why these projections cannot be one product, or None; notices what has changed."""
        if self._watches and all([watch.unchanged() for watch in self._watches]) and self._values == self._seen():
            return None
        self._operand, self._watches = None, ()
        self._refused = self.why_not()
        if self._refused is not None:
            self._made = None  # merged adapters change weights where no counter shows it
        else:
            self._join()
            self._watches = tuple(_Watch(module) for module in self.modules)
        return self._refused

    @property
    def in_use(self) -> Operand | None:
        """The operand of the last forward."""
        return self._operand

    def read(self, dtype: torch.dtype) -> Operand:
        """The group as it is now: weights, and the factors of the active adapters.

        Args:
            dtype: what is computed in. Weights kept in another one are cast for this forward.
        """
        operand = self._operand
        assert operand is not None, "read() comes after refusal()"
        clean = self._written is operand.factors  # no other adapter's values between ours
        if self.factors and not (clean and self.writer is not None and self.writer.wrote(operand)):
            self.write()
        if isinstance(operand, Operand8) and isinstance(operand.weights8, Trained8):
            operand = replace(operand, weights8=operand.weights8.anew())
        if dtype != operand.dtype:
            operand = operand.cast(dtype)
        if any(bias is not None for bias in operand.biases):
            operand = replace(operand, bias_N=_joined_bias(operand, dtype))
        return operand

    def write(self) -> None:
        """Copy the factors as they are now into the widened columns."""
        operand = self.prepared()
        with torch.no_grad():
            for part in self.factors:
                torch.mul(part.A, part.scale, out=operand.A_PK[part.columns])  # type: ignore[index]
                if operand.B_NP is not None:
                    operand.B_NP[part.rows, part.columns].copy_(part.B)

    def prepared(self) -> Operand:
        """The operand with room for its factors, and no other adapter's values in it."""
        operand = self._operand
        assert operand is not None
        if self._written is not operand.factors and operand.A_PK is not None:
            with torch.no_grad():
                operand.A_PK.zero_()
                if operand.B_NP is not None:
                    operand.B_NP.zero_()
            self._written = operand.factors
        return operand

    def rewrite(self, operand: Operand) -> None:
        """Put back the factors that `operand` was read with, if others have been written since."""
        if not operand.factors or operand.factors is self._written or self._operand is None:
            return
        kept = self.factors, self._operand
        self.factors, self._operand = operand.factors, operand
        self.write()
        self.factors, self._operand = kept

    def release(self) -> None:
        """Give each weight memory of its own again."""
        for module in self.modules:
            weight = base_of(module).weight
            if self._storage is not None and _shares(weight, self._storage):
                weight.data = weight.data.clone(memory_format=torch.contiguous_format)
        self._storage = self._A = self._operand = self._made = None
        self._watches = ()

    def why_not_8(self) -> str | None:
        """Why its products would not be made in 8-bit floats, or None."""
        return refusal_8(parts_of(self.modules), adapted=any(active_factors(module) for module in self.modules))

    def why_not(self) -> str | None:
        """Why these projections cannot be one product as they are, or None; changes nothing."""
        found = [reason for module in self.modules if (reason := refusal_of(module))]
        if found:
            return found[0]
        bases = [base_of(module) for module in self.modules]
        if len({(dtype_of(base), base.weight.device) for base in bases}) > 1:
            return "projections of one input differ in dtype or device"
        return None

    def _join(self) -> None:
        """Make the operand: one memory for all weights, with columns for the factors, or the parts it is read from."""
        bases = [base_of(module) for module in self.modules]
        weights: tuple[Any, ...] = tuple(base.weight for base in bases)
        parts = parts_of(self.modules)
        rows, place = [], 0
        for part in parts:
            rows.append(slice(place, place + part.shape[0]))
            place = rows[-1].stop
        width, dtype, device = parts[0].shape[1], self.dtype, device_of(parts[0])
        self.factors = self._factors(rows)
        used = self.factors[-1].columns.stop if self.factors else 0
        eight = None if self.compute8 is None or refusal_8(parts, adapted=bool(self.factors)) else self.compute8
        trained = eight is not None and all(isinstance(part, torch.Tensor) and part.requires_grad for part in parts)
        joined = None
        if eight is not None and all(isinstance(part, RowScaled) for part in parts):
            joined = self._memory(weights, rows, width, 0)
            parts = parts_of(self.modules)
        stored: torch.Tensor | Mixed = Mixed(parts, tuple(rows), width, self.workspace, self.impl)
        self._values = self._seen()
        widened = _aligned(used, _STEP)
        if trained:
            stored = self._memory(weights, rows, width, 0)[:, :width]
        elif eight is None and all(isinstance(part, torch.Tensor) for part in parts):
            widened = _aligned(used, ALIGNED.get(device.type, 1))
            stored = self._memory(weights, rows, width, widened)[:, : width + widened]
        fits = (
            self._A is not None and self._A.shape[0] >= widened and (self._A.dtype, self._A.device) == (dtype, device)
        )
        if widened and not fits:
            self._A, self._written = torch.zeros((widened, width), dtype=dtype, device=device), ()
        common: dict[str, Any] = {
            "stored": stored,
            "dtype": dtype,
            "widened": widened,
            "A_PK": self._A[:widened] if widened and self._A is not None else None,
            "bias_N": None,
            "width": width,
            "factors": self.factors,
            "weights": weights,
            "biases": tuple(base.bias for base in bases),
            "rows": tuple(rows),
        }
        if eight is None:
            self._operand = Operand(**common)
            return
        if isinstance(stored, torch.Tensor):
            own = Trained8(stored, eight.workspace, torch.ones(width, device=device), self.impl)
            self._operand, self._made = Operand8(**common, weights8=own, kept_B=None), None
            return
        source = [(id(weight), weight.data_ptr(), weight._version) for weight in weights]
        if self._made is None or self._made[0] != source:
            self._made = None  # the old ones are free before the new ones are made
            self._made = (
                source,
                weights_in_8_bits(
                    parts, common["rows"], width, eight.workspace, turned=eight.turned, impl=self.impl, joined=joined
                ),
            )
        kept_B = torch.zeros((place, widened), dtype=dtype, device=device) if widened else None  # noqa: N806
        self._written = ()
        self._operand = Operand8(**common, weights8=self._made[1], kept_B=kept_B)

    def _seen(self) -> tuple[Any, ...]:
        weights = [base_of(module).weight for module in self.modules]
        if self.compute8 is None:  # scales of whole numbers are copies too
            return tuple([weight._version for weight in weights if weight.dtype == torch.int8])
        return tuple(None if weight.requires_grad else weight._version for weight in weights)

    def _factors(self, rows: Sequence[slice]) -> tuple[Factors, ...]:
        found: list[Factors] = []
        place = 0
        for module, own in zip(self.modules, rows, strict=True):
            for A, B, scale in active_factors(module):  # noqa: N806
                columns = slice(place, place + A.shape[0])
                found.append(Factors(A, B, scale, own, columns))
                place = columns.stop
        return tuple(found)

    def _memory(self, weights: Sequence[nn.Parameter], rows: Sequence[slice], width: int, widened: int) -> torch.Tensor:
        """``[N, K + at least P]`` with the weights in it, which are views of it."""
        storage = self._storage
        if storage is not None and storage.shape[1] >= width + widened and _all_within(weights, rows, storage):
            return storage
        if len(weights) == 1 and not widened:
            return weights[0].data
        with torch.no_grad():
            storage = weights[0].new_empty((rows[-1].stop, width + widened))
            storage[:, width:] = 0
            for weight, own in zip(weights, rows, strict=True):
                storage[own, :width].copy_(weight)
                weight.data = storage[own, :width]
        self._storage, self._A, self._written = storage, None, ()
        return storage


class _Watch:
    """What a forward of one projection depends on beside values, as look-ups that are compared in every forward.

    Args:
        module: `nn.Linear`, or PEFT's LoRA layer on one.
    """

    def __init__(self, module: nn.Module) -> None:
        base = base_of(module)
        self.entries: list[tuple[dict[str, Any], str, Any]] = []
        self.empty: list[Any] = []
        self.pointers: list[tuple[torch.Tensor, int]] = []
        for part in {id(one): one for one in (module, base)}.values():
            own = part.__dict__
            self.empty += [own["_forward_hooks"], own["_forward_pre_hooks"], own["_backward_hooks"]]
            self._remember(own, "_hf_hook")
            self._remember(own, "_is_fsdp_managed_module")
        self._weight(base)
        self._remember(base.__dict__["_parameters"], "bias")
        if base is module:
            return
        own = module.__dict__
        for name in ("_disable_adapters", "_active_adapter"):
            self._remember(own, name)
        self._remember(own["_modules"], "base_layer")
        self.empty.append(own["merged_adapters"])
        for name in module.active_adapters:  # type: ignore[union-attr]
            self._remember(own["scaling"], name)
            for kind in ("lora_A", "lora_B", "lora_dropout"):
                parts = own["_modules"][kind].__dict__["_modules"]
                self._remember(parts, name)
                if name in parts and kind != "lora_dropout":
                    self._weight(parts[name])
                elif name in parts and getattr(parts[name], "p", 0.0):
                    self._remember(parts[name].__dict__, "training")

    def unchanged(self) -> bool:
        """Whether everything is as it was."""
        for holder, name, value in self.entries:
            if holder.get(name) is not value:
                return False
        for hooks in self.empty:
            if hooks:
                return False
        for tensor, pointer in self.pointers:
            if tensor.data_ptr() != pointer:
                return False
        return True

    def _remember(self, holder: dict[str, Any], name: str) -> None:
        self.entries.append((holder, name, holder.get(name)))

    def _weight(self, linear: nn.Module) -> None:
        weight = linear.__dict__["_parameters"]["weight"]
        self._remember(linear.__dict__["_parameters"], "weight")
        self._remember(weight.__dict__, "quant_state")
        self.pointers.append((weight, weight.data_ptr()))


def base_of(module: nn.Module) -> nn.Linear:
    """The linear layer under PEFT's, or the module itself."""
    return getattr(module, "base_layer", module)  # type: ignore[return-value]


def refusal_of(module: nn.Module) -> str | None:
    """Why a projection must run its own forward, or None."""
    base = base_of(module)
    if getattr(base, "_is_fsdp_managed_module", False):
        return "weights sharded by FSDP"
    if stored_of(base) is None and type(base) is not nn.Linear:
        return f"{type(base).__name__} weights"
    if type(base) is nn.Linear and type(base.weight) is not nn.Parameter:
        return f"{type(base.weight).__name__} weights"
    for part in (module, base):
        if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or hasattr(part, "_hf_hook"):
            return "hooks on a projection"
    return _adapter_refusal(module) if base is not module else None


def _adapter_refusal(module: Any) -> str | None:
    from peft.tuners.lora import Linear as LoraLinear

    of_bnb = type(module).__module__ == "peft.tuners.lora.bnb" and type(module).__name__.startswith("Linear")
    if type(module) is not LoraLinear and not of_bnb:
        return f"adapter layers of type {type(module).__name__}"
    if module.merged:
        return "adapters merged into the weights"
    for name in module.active_adapters:
        if name not in module.lora_A:
            continue
        dropout = module.lora_dropout[name]
        if dropout.training and getattr(dropout, "p", 0.0):
            return "LoRA dropout"
        if getattr(module, "lora_variant", {}).get(name) is not None or getattr(module, "use_dora", {}).get(name):
            return "a LoRA variant (DoRA or another)"
        if module.lora_A[name].bias is not None or module.lora_B[name].bias is not None:
            return "LoRA bias"
        if type(module.lora_A[name].weight) is not nn.Parameter:
            return f"{type(module.lora_A[name].weight).__name__} factors"
    return None


def active_factors(module: Any) -> list[tuple[nn.Parameter, nn.Parameter, float]]:
    """A, B and scale of each adapter that is in use on a projection."""
    if base_of(module) is module or module.disable_adapters:
        return []
    return [
        (module.lora_A[name].weight, module.lora_B[name].weight, float(module.scaling[name]))
        for name in module.active_adapters
        if name in module.lora_A
    ]


def dtype_of(base: nn.Linear) -> torch.dtype:
    """What a layer's weight is kept in; of a 4-bit or 8-bit one, what it was before or is computed in."""
    stored = stored_of(base)
    return base.weight.dtype if stored is None else stored.dtype


def parts_of(modules: Sequence[nn.Module]) -> tuple[Stored, ...]:
    """The weights of projections as they are kept."""
    bases = [base_of(module) for module in modules]
    return tuple(base.weight if (part := stored_of(base)) is None else part for base in bases)


def _aligned(columns: int, step: int) -> int:
    return -(-columns // step) * step


def _shares(weight: torch.Tensor, storage: torch.Tensor) -> bool:
    return weight.untyped_storage().data_ptr() == storage.untyped_storage().data_ptr()


def _all_within(weights: Sequence[torch.Tensor], rows: Sequence[slice], storage: torch.Tensor) -> bool:
    """Whether every weight is still the view of the memory that it was made to be."""
    start, row_bytes = storage.data_ptr(), storage.stride(0) * storage.element_size()
    return all(
        weight.data_ptr() == start + own.start * row_bytes and weight.dtype == storage.dtype
        for weight, own in zip(weights, rows, strict=True)
    )


def _joined_bias(operand: Operand, dtype: torch.dtype) -> torch.Tensor:
    """The biases as one vector, zero where a projection has none."""
    with torch.no_grad():
        parts = [
            weight.new_zeros(weight.shape[0], dtype=dtype) if bias is None else bias.to(dtype)
            for weight, bias in zip(operand.weights, operand.biases, strict=True)
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0].detach()
