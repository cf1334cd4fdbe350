"""Dynamic quantization: NF4 everywhere, 16 bit where it counts, and codes chosen for what the model reads.

Three things lower what quantization costs, in this order:

1. *Scales* of the blocks that fit the inputs (`scales`), and then the codes (`refit`), at no bytes.
2. *Codes* in which each column makes up for the errors of others (`compensate`), at no bytes.
3. *More bytes* for the projections that save most nats for them (`sensitivity`, `choose`), within the budget: blocks of
   32 instead of 64 (3 % more bytes), or 16 bit (four times as many). transformers loads nothing else between.

In the first two a position counts by how much an error there would change the model's predictions: a first token that
all others attend to weighs as much as hundreds of them. All are chosen on calibration text and measured on other text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from hasten.errors import ConfigError
from hasten.quant import nf4
from hasten.quant.calibration import Windows
from hasten.quant.choose import Upgrade, affordable
from hasten.quant.compensate import compensated, damped
from hasten.quant.divergence import Reference
from hasten.quant.layers import Layer
from hasten.quant.moments import Moments
from hasten.quant.nf4 import Nf4
from hasten.quant.refit import refitted
from hasten.quant.scales import fitted
from hasten.quant.sensitivity import Prices, price
from hasten.quant.stages import Stages
from hasten.quant.walk import walk

Tell = Callable[[str], None]
_PLAIN = Upgrade(bits=4, block=nf4.BLOCK, nats_saved=0.0, bytes_added=0)
_ROUNDS = 2
"""Codes for scales, scales for codes."""
_SMALL_BLOCKS_LEAVE = 0.83
"""Share of the output error that blocks of 32 leave (measured by hand on eight projections of the demo)."""


@dataclass(frozen=True, kw_only=True)
class QuantizeSettings:
    """How a model is quantized."""

    bits: int = 4
    """Bits of a quantized weight; 4."""
    budget: float = 1.10
    """Bytes of the decoder's linear weights as a multiple of what plain NF4 takes."""
    upgrade_bits: Literal[8, 16] = 16
    """What a weight that matters gets. 16 can be saved; 8 (one scale a row) is for measuring: nothing else loads it."""
    small_blocks: bool = True
    """Spend bytes on blocks of 32 too; old bitsandbytes and kernels made for blocks of 64 cannot read them."""
    damping: float = 0.5
    """See `hasten.quant.compensate`; a few thousand tokens need much, or codes fit them and no other text."""

    def __post_init__(self) -> None:
        if self.bits != 4:
            rule = "Dynamic quantization writes bitsandbytes' NF4, which has 4 bits."
            raise ConfigError("bits", str(self.bits), rule, "Leave it at 4.")
        if not 1.0 <= self.budget <= 4.0:
            raise ConfigError(
                "budget",
                str(self.budget),
                "It is a multiple of plain NF4's bytes, from 1.0 (no weight keeps 16 bit) to 4.0 (all do).",
                "1.10 is a good beginning.",
            )


@dataclass(frozen=True)
class Projection:
    """What became of one linear module."""

    name: str
    layer: int
    kind: str
    """Its own name inside the layer, e.g. ``self_attn.q_proj``."""
    shape: tuple[int, int]
    bits: int
    block: int
    """Values that share a scale; 0 where it has none."""
    bytes: int
    plain_bytes: int
    """What plain NF4 takes."""
    nats: float
    """Estimated divergence (nats per token) that its 4-bit error causes, or would have caused."""
    note: str = ""
    """Why it is not 4 bit, where it is not the budget's choice."""


@dataclass(frozen=True)
class Quantized:
    """The figures of a quantized model."""

    projections: tuple[Projection, ...]
    budget: float
    bytes: int
    """Of all projections that could be quantized."""
    plain_bytes: int
    divergence: float | None
    """Nats per token to the original model, on text that nothing was chosen by; None where the rows had no more."""
    plain_divergence: float | None
    """The same of plain NF4."""
    calibration_tokens: int
    heldout_tokens: int
    streamed: bool
    """Whether one layer at a time was on the device."""

    @property
    def ratio(self) -> float:
        """Bytes as a multiple of plain NF4's."""
        return self.bytes / self.plain_bytes

    def as_dict(self) -> dict[str, Any]:
        """All figures, for programs."""
        return {**asdict(self), "ratio": self.ratio}


def quantize(
    model: Any,
    windows: Windows,
    settings: QuantizeSettings,
    tell: Tell = lambda text: None,
    device: torch.device | None = None,
) -> tuple[dict[str, Nf4], Quantized]:
    """Choose codes, scales and bits for a model.

    Args:
        model: a causal language model in evaluation mode; its projections hold the quantized values afterwards.
        windows: text to choose by and to measure on.
        settings: the budget.
        tell: told what is being done.
        device: where one layer at a time is copied to and computed, the model staying where it is; None: all of the
            model is where it is computed.

    Returns:
        The 4-bit weights, in host memory, by the names of their projections, and the figures.

    Raises:
        ModelError: the weights are quantized already, or predictions are not finite.
        CapabilityError: the model has no layers to go through, or the text does not reach all projections.
    """
    stages = Stages(model, device)
    names = [name for layer in stages.layers for name in layer.projections]

    tell("measuring the original model")
    with Reference(stages, windows.heldout) as before:
        plain_divergence = None
        if windows.heldout:
            tell("measuring plain NF4")
            plain_divergence = before.divergence(lambda weight: nf4.plain(weight).values())

        tell("weighing positions, and pricing the errors of every projection")
        prices = price(stages, windows.calibration, _errors_of(model, settings))
        better = _better(model, names, prices, settings)

        wide = [name for name, upgrade in better.items() if upgrade.bits != 4]
        tell(f"quantizing; {len(wide)} of {len(names)} projections keep {settings.upgrade_bits} bit")
        for name in wide:
            weight = _weight(model, name).data
            weight.copy_(upgraded(weight, settings.upgrade_bits, storage_dtype(model)))
        codes: dict[str, Nf4] = {}
        walk(stages, windows.calibration, _rounding(model, codes, settings, better), prices.weights)
        tell("measuring")
        divergence = before.divergence() if windows.heldout else None
    told = tuple(_projections(model, stages.layers, prices, better))
    counted = [projection for projection in told if not projection.note]
    return codes, Quantized(
        told,
        settings.budget,
        sum(projection.bytes for projection in counted),
        sum(projection.plain_bytes for projection in counted),
        divergence,
        plain_divergence,
        sum(map(len, windows.calibration)),
        sum(map(len, windows.heldout)),
        stages.streamed,
    )


def storage_dtype(model: Any) -> torch.dtype:
    """The 16-bit type that the model's own configuration names; bfloat16 where it names a wider one."""
    return model.config.dtype if model.config.dtype == torch.float16 else torch.bfloat16


def upgraded(weight_NK: torch.Tensor, bits: Literal[8, 16], dtype: torch.dtype) -> torch.Tensor:
    """What a weight that matters becomes: 16-bit values, or 8-bit ones with one scale a row."""
    if bits == 16:
        return weight_NK.to(dtype).to(weight_NK.dtype)
    scale_N1 = (weight_NK.float().abs().amax(1, keepdim=True) / 127).clamp(min=1e-38)
    return ((weight_NK / scale_N1).round() * scale_N1).to(weight_NK.dtype)


def upgraded_bytes(shape: tuple[int, int], bits: int) -> int:
    """Bytes of a weight that matters."""
    outputs, inputs = shape
    return 2 * outputs * inputs if bits == 16 else outputs * inputs + 4 * outputs


def _errors_of(model: Any, settings: QuantizeSettings) -> Callable[[Layer, Moments], dict[str, list[torch.Tensor]]]:
    """What 4 bits in blocks of 64 leave of each projection of a layer."""

    def errors_of(layer: Layer, moments: Moments) -> dict[str, list[torch.Tensor]]:
        errors: dict[str, list[torch.Tensor]] = {}
        for name in layer.projections:
            weight = _weight(model, name)
            values = _chosen(weight, moments.pop(name), nf4.BLOCK, settings).values()
            errors[name] = [(values - weight.float()).to(weight.dtype)]
        return errors

    return errors_of


def _rounding(
    model: Any, into: dict[str, Nf4], settings: QuantizeSettings, better: Mapping[str, Upgrade]
) -> Callable[[Layer, Moments], None]:
    """How a layer is changed: to the values that the codes stand for, where it gets 4 bit."""

    def change(layer: Layer, moments: Moments) -> None:
        for name in layer.projections:
            upgrade, moment_KK = better.get(name, _PLAIN), moments.pop(name)
            if upgrade.bits == 4:
                weight = _weight(model, name)
                chosen = _chosen(weight, moment_KK, upgrade.block, settings)
                weight.data.copy_(chosen.values())
                into[name] = chosen.to("cpu")

    return change


def _chosen(weight_NK: torch.Tensor, moment_KK: torch.Tensor, block: int, settings: QuantizeSettings) -> Nf4:
    """Codes and scales for one weight and what it reads."""
    damped_KK = damped(moment_KK, settings.damping)
    scales = fitted(weight_NK, moment_KK.diagonal(), block)
    for _ in range(_ROUNDS - 1):
        scales = refitted(weight_NK, damped_KK, compensated(weight_NK, damped_KK, scales)).scales
    return refitted(weight_NK, damped_KK, compensated(weight_NK, damped_KK, scales))


def _better(model: Any, names: list[str], prices: Prices, settings: QuantizeSettings) -> dict[str, Upgrade]:
    """What projections get instead of NF4 with blocks of 64, where they get more."""
    upgrades: dict[str, list[Upgrade]] = {}
    plain_bytes = 0
    for name in names:
        outputs, inputs = _weight(model, name).shape
        shape, nats = (outputs, inputs), prices.nats[name][0]
        bytes_now = nf4.stored_bytes(shape)
        plain_bytes += bytes_now
        smaller = nf4.stored_bytes(shape, nf4.SMALL_BLOCK) - bytes_now
        wider = upgraded_bytes(shape, settings.upgrade_bits) - bytes_now
        upgrades[name] = [Upgrade(settings.upgrade_bits, 0, nats, wider)]
        if settings.small_blocks:
            upgrades[name].append(Upgrade(4, nf4.SMALL_BLOCK, nats * (1 - _SMALL_BLOCKS_LEAVE), smaller))
    return affordable(upgrades, int(plain_bytes * settings.budget) - plain_bytes)


def _projections(
    model: Any, layers: list[Layer], prices: Prices, better: Mapping[str, Upgrade]
) -> Iterator[Projection]:
    for number, layer in enumerate(layers):
        for name in (*layer.projections, *layer.uneven):
            outputs, inputs = _weight(model, name).shape
            shape = (outputs, inputs)
            kind = name.removeprefix(f"{layer.name}.")
            if name in layer.uneven:
                note = f"its width {inputs} is no multiple of {nf4.BLOCK}"
                size = upgraded_bytes(shape, 16)
                yield Projection(name, number, kind, shape, 16, 0, size, size, 0.0, note)
                continue
            plain_bytes = nf4.stored_bytes(shape)
            upgrade = better.get(name, _PLAIN)
            size = plain_bytes + upgrade.bytes_added
            nats = prices.nats[name][0]
            yield Projection(name, number, kind, shape, upgrade.bits, upgrade.block, size, plain_bytes, nats)


def _weight(model: Any, name: str) -> torch.Tensor:
    return model.get_submodule(name).weight
