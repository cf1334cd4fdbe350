"""The memory that a training run needs, part by part, and whether it fits.

What each layer keeps is decided here by the function that decides it in a run (`hasten.plan.choose_activations`), with
what will be free once weights and adapter are in place. So the answer is the run's own.

Bytes of n values, item bytes each, trained in T:

    gradients   T n
    adamw       2 T n, and a float32 for each tensor
    adamw_8bit  2 n, and two float32 for each 256 values; tensors of fewer than 4,096 values as adamw
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hasten.errors import ConfigError
from hasten.estimate.facts import Facts
from hasten.estimate.weights import weight_bytes
from hasten.hardware.memory import Budget
from hasten.hardware.probe import Hardware
from hasten.plan import LOGITS_BYTES, Decision, allocator_room, choose_activations, choose_dtype
from hasten.policies import Policy, kept_bytes, working_bytes
from hasten.storage import Storage

Optimizer = Literal["adamw", "adamw_8bit"]
Checkpointing = Literal["auto", "on", "off", "offload"]
ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}
_ADAPTER_ITEM = 4
"""Adapters are trained in float32, whatever the weights are in."""
_SMALL, _BLOCK = 4096, 256
_PLAIN_FACTOR = 2
"""Modules without a fast form keep about 1.6 times what fast layers keep (LLaMA 8B, measured); rounded up."""
_PLAIN_LOGIT = 10
"""Bytes of one logit where the loss is not fused: itself in 16 bits, and it and its gradient in float32."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is asked for."""

    full: bool = False
    """Train every weight, not an adapter."""
    rank: int = 16
    storage: Storage = "plain"
    length: int = 2048
    """Tokens of the longest row."""
    batch: int = 4
    """Rows of a micro-batch."""
    optimizer: Optimizer = "adamw"
    checkpointing: Checkpointing = "auto"
    dtype: str = "auto"

    def check(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            ConfigError: quantized weights that are to be trained.
        """
        if self.full and self.storage != "plain":
            raise ConfigError(
                "--full",
                f"with --storage {self.storage}",
                "Quantized weights are frozen: only an adapter on them is trained.",
                "Leave out one of the two.",
            )


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where it is to run."""

    hardware: Hardware
    budget: Budget


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run needs."""

    settings: Settings
    parts: dict[str, int]
    """Bytes by component, in the order in which they come into memory."""
    budget: int
    policies: tuple[Policy, ...]
    activations: Decision

    @property
    def total(self) -> int:
        """Everything together."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether the machine has it."""
        return self.total <= self.budget


def estimate(
    facts: Facts, settings: Settings, machine: Machine, *, policies: Sequence[Policy] | None = None
) -> Estimate:
    """Count.

    Args:
        facts: the model.
        settings: what is asked for.
        machine: where.
        policies: what each layer keeps, where that is known; None: as a run would choose. Fast layers only.

    Raises:
        ConfigError: settings that contradict each other or the machine.
    """
    settings.check()
    if settings.full and (facts.quantized or facts.layout is not None):
        rule = "Quantized weights are frozen: only an adapter on them is trained."
        raise ConfigError("--full", "of a quantized checkpoint", rule, "Name its 16-bit original, or leave out --full.")
    hardware = machine.hardware
    dtype, _ = choose_dtype(hardware, settings.dtype)
    item = ITEM[dtype]
    widths, tokens = replace(facts.widths, item=item), settings.batch * settings.length
    parts = {f"weights: {part}": size for part, size in weight_bytes(facts, _storage(facts, settings), item).items()}
    trained = trained_values(facts, settings)
    trained_item = item if settings.full else _ADAPTER_ITEM
    trained_bytes = trained_item * sum(trained)
    if not settings.full:
        parts[f"adapter (rank {settings.rank})"] = trained_bytes
    if _storage(facts, settings) != "plain" and facts.largest_group:
        parts["weights read for use"] = item * facts.largest_group
    free = machine.budget.bytes - sum(parts.values())
    parts["gradients"] = trained_bytes
    parts[f"optimizer ({settings.optimizer})"] = optimizer_bytes(trained, settings.optimizer, trained_item)
    head_values = facts.vocabulary * facts.widths.hidden
    if settings.full and item < 4:
        parts["the head's gradient in float32"] = 4 * head_values
    logits = tokens * facts.vocabulary * item
    if facts.fast:
        chosen, said = choose_activations(
            hardware,
            asked=settings.checkpointing,
            layers=facts.layers,
            tokens=tokens,
            widths=widths,
            free_bytes=free,
            trained_bytes=trained_bytes,
            vocabulary=facts.vocabulary,
        )
        policies = chosen if policies is None else tuple(policies)
        parts["activations kept"] = sum(tokens * kept_bytes(policy, widths, tokens) for policy in policies)
        parts["activations of the layer at work"] = working_bytes(widths, tokens)
        parts["logits, a chunk"] = 2 * min(logits, LOGITS_BYTES)
    else:
        # Plain modules keep everything unless every layer is recomputed; nothing chooses between.
        policy: Policy = "recompute" if settings.checkpointing in ("on", "offload") else "keep"
        policies = (policy,) * facts.layers
        said = Decision(part="activations", choice=policy, why=f"plain modules: {facts.why_plain}")
        one = _PLAIN_FACTOR * tokens * kept_bytes("keep", widths)
        recomputed = policy == "recompute"
        parts["activations kept"] = facts.layers * (tokens * widths.item * widths.hidden if recomputed else one)
        parts["activations of the layer at work"] = working_bytes(widths, tokens) + (one if recomputed else 0)
        parts["logits, all"] = tokens * facts.vocabulary * _PLAIN_LOGIT
    parts["room for allocators"] = allocator_room(hardware)
    return Estimate(
        settings=settings, parts=parts, budget=machine.budget.bytes, policies=tuple(policies), activations=said
    )


def trained_values(facts: Facts, settings: Settings) -> list[int]:
    """Values of each trained tensor."""
    if settings.full:
        return [weight.values for weight in facts.weights if not weight.buffer]
    return [settings.rank * side for sides in facts.adapted for side in sides]


def optimizer_bytes(trained: list[int], optimizer: Optimizer, item: int) -> int:
    """Bytes of an optimizer's state.

    Args:
        trained: values of each trained tensor.
        optimizer: its name.
        item: bytes of one trained value.
    """
    if optimizer == "adamw":
        return sum(2 * item * values + 4 for values in trained)
    small = sum(2 * 4 * values for values in trained if values < _SMALL)
    return small + sum(2 * values + 2 * 4 * -(-values // _BLOCK) for values in trained if values >= _SMALL)


def _storage(facts: Facts, settings: Settings) -> Storage:
    """What the loaders make of it: a checkpoint that is quantized already stays so."""
    if facts.quantized == "bitsandbytes 4-bit":
        return "nf4"
    if facts.quantized == "bitsandbytes 8-bit":
        return "int8"
    return settings.storage
