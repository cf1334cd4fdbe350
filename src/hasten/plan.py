"""The Plan: every decision about how a run is computed, taken in one place by a pure function.

Nothing here looks at a device, loads a model or reads a clock: `make_plan` maps (model facts, hardware facts, what the
user asked for) to decisions, so each of them can be tested with a made-up machine. Everything else obeys the Plan.
Each decision carries its reason, and whether it is a fallback; the run header prints them and the run record keeps
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from hasten.errors import CapabilityError, ConfigError, did_you_mean
from hasten.families.base import Family
from hasten.hardware.checks.triton import failed_kernel
from hasten.hardware.memory import Budget, said
from hasten.hardware.probe import Hardware
from hasten.policies import POLICIES, Policy, Widths, choose_policies, kept_bytes, working_bytes
from hasten.storage import SAID, Storage

DType = Literal["bfloat16", "float16", "float32"]
DTYPES: tuple[DType, ...] = get_args(DType)
Layout = Literal["packed", "padded"]
Compute = Literal["bf16", "fp8"]
FP8_CAPABILITY = (8, 9)
"""The first CUDA compute capability with 8-bit products."""

LOGITS_BYTES = 256 * 2**20
"""Most bytes of logits that are in memory at once."""


LEAST_REPLAYED = 1024
"""Where micro-batches of so many tokens have no room beside the rest, none are recorded."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for; ``auto`` leaves the choice to the Plan."""

    dtype: Literal["auto"] | DType = "auto"
    storage: Storage = "plain"
    compute: Compute = "bf16"
    packing: Literal["auto", "on", "off"] = "auto"
    checkpointing: Literal["auto", "on", "off"] = "auto"
    optimizer: str = "adamw"
    deterministic: bool = False


@dataclass(frozen=True, kw_only=True)
class Decision:
    """One line of the run header."""

    part: str
    choice: str
    why: str
    fallback: bool = False

    def as_dict(self) -> dict[str, object]:
        """Plain values for the run record."""
        return {"part": self.part, "choice": self.choice, "why": self.why, "fallback": self.fallback}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a run is computed."""

    device: str
    dtype: DType
    storage: Storage
    compute: Compute
    """What products of frozen weights are made in."""
    autocast: bool
    layout: Layout
    rounded: bool
    """Whether packed rows are lengthened to sizes that recur."""
    optimizer: str
    decisions: tuple[Decision, ...]


def choose_dtype(hardware: Hardware, requested: str) -> tuple[DType, Decision]:
    """The dtype of frozen weights and activations.

    Raises:
        ConfigError: an unknown type, or half precision on a CPU, where its gradients underflow.
    """
    if requested == "float16" and not hardware.is_cuda:
        raise ConfigError(
            "model.dtype", "'float16' on a CPU", "Half precision trains on GPUs only.", "Use 'auto' or 'bfloat16'."
        )
    for dtype in DTYPES:
        if requested == dtype:
            return dtype, Decision(part="dtype", choice=dtype, why="asked for")
    if requested != "auto":
        rule = f"Allowed: auto, {', '.join(DTYPES)}."
        raise ConfigError("model.dtype", repr(requested), rule, did_you_mean(requested, DTYPES, "Use 'auto'."))
    if not hardware.is_cuda:
        return "float32", Decision(part="dtype", choice="float32", why="exact, and the fastest that every CPU has")
    if hardware.bf16:
        return "bfloat16", Decision(part="dtype", choice="bfloat16", why="native on this device")
    return "float16", Decision(part="dtype", choice="float16", why="this device has no bfloat16 units", fallback=True)


def make_plan(hardware: Hardware, family: Family, model_type: str, request: Request) -> Plan:
    """Decide everything about a run.

    Args:
        hardware: the machine, from `hasten.hardware.probe.probe`.
        family: the model's family, from `hasten.families.base.family_of`.
        model_type: the model's own ``config.model_type``, for messages.
        request: what the user asked for.

    Raises:
        ConfigError: the request contradicts the machine or the family.
        CapabilityError: 8-bit products were asked for and this machine has none.
    """
    dtype, dtype_decision = choose_dtype(hardware, request.dtype)
    if request.compute == "fp8" and request.storage == "int8":
        raise ConfigError(
            "model.compute",
            "'fp8' with load_in_8bit",
            "Whole numbers of 8 bits are no 8-bit floats.",
            "Use load_in_fp8, or compute 'bf16'.",
        )
    if request.compute == "fp8":
        require_fp8(hardware, dtype, "model.compute")
        require_fp8_blocks(family, model_type, "model.compute")
    decisions = [
        Decision(part="device", choice=hardware.device, why=f"{hardware.name}, {hardware.total_bytes / 2**30:.0f} GiB"),
        dtype_decision,
    ]
    if request.storage != "plain":
        choice = request.storage.upper() if request.storage == "nf4" else request.storage
        decisions.append(Decision(part="frozen weights", choice=choice, why=SAID[request.storage]))
    layout = _choose_layout(hardware, family, model_type, request, decisions)
    if request.deterministic and hardware.is_cuda:
        why = "asked for; attention's backward adds in one order"
        decisions.append(Decision(part="arithmetic", choice="deterministic", why=why))
    why = (
        "fast layers keep what memory allows, other modules everything"
        if request.checkpointing == "auto"
        else "asked for"
    )
    decisions.append(Decision(part="checkpointing", choice=request.checkpointing, why=why))
    return Plan(
        device=hardware.device,
        dtype=dtype,
        storage=request.storage,
        compute=request.compute,
        autocast=dtype != "float32",
        layout=layout,
        rounded=layout == "packed" and hardware.is_cuda,
        optimizer=request.optimizer,
        decisions=tuple(decisions),
    )


def choose_watch(hardware: Hardware, asked: Literal["auto", "on", "off"]) -> bool:
    """Whether a run stops before its machine has no memory left: where a GPU shares it, and where it is asked for."""
    return asked == "on" or (asked == "auto" and hardware.unified_memory)


def say_memory(budget: Budget, *, watched: bool = False) -> tuple[Decision, ...]:
    """The header's lines about memory: what may be planned with, and what hides some of it.

    Args:
        budget: from `hasten.hardware.probe.memory_budget`.
        watched: whether the run stops before memory runs out.
    """
    stops = "; the run stops with a checkpoint before the machine's runs out" if watched else ""
    lines = [Decision(part="memory", choice=said(budget.bytes), why=f"{budget.rule}{stops}")]
    if budget.advice is not None:
        lines.append(Decision(part="note", choice="page cache", why=budget.advice))
    return tuple(lines)


def choose_activations(
    hardware: Hardware,
    *,
    asked: Literal["auto", "on", "off", "offload"],
    layers: int,
    tokens: int,
    widths: Widths,
    free_bytes: int,
    trained_bytes: int,
    vocabulary: int,
) -> tuple[tuple[Policy, ...], Decision]:
    """What each layer keeps for its backward, once the weights are in place.

    Args:
        hardware: the machine.
        asked: on recomputes every layer, off keeps everything, offload recomputes and keeps inputs in host memory where
            that is another memory, auto goes by what is free.
        layers: decoder layers.
        tokens: most tokens of a micro-batch.
        widths: of one layer.
        free_bytes: device memory that is free now, with weights and adapters loaded.
        trained_bytes: of trained parameters: their gradients and the optimizer's two states come on top.
        vocabulary: columns of the logits; a chunk of them is in memory for a moment.
    """
    discrete = hardware.is_cuda and not hardware.unified_memory
    if asked != "auto":
        policy: Policy = "keep" if asked == "off" else "offload" if asked == "offload" and discrete else "recompute"
        shared = "; the device's memory is the host's, nothing is moved" if asked == "offload" and not discrete else ""
        every: list[Policy] = [policy] * layers
        return tuple(every), Decision(part="activations", choice=policy, why=f"checkpointing: {asked}{shared}")
    room = activation_room(hardware, free_bytes, trained_bytes, tokens * vocabulary * widths.item)
    policies = choose_policies(layers, tokens, widths, room, offload=discrete)
    counted = {policy: policies.count(policy) for policy in POLICIES if policy in policies}
    choice = ", ".join(policy if len(counted) == 1 else f"{count} x {policy}" for policy, count in counted.items())
    kept = sum(tokens * kept_bytes(policy, widths, tokens) for policy in policies)
    why = f"{kept / 2**30:.1f} GiB for up to {tokens:,} tokens, {max(room, 0) / 2**30:.1f} GiB at hand"
    return policies, Decision(part="activations", choice=choice, why=why)


def choose_replay(
    hardware: Hardware,
    *,
    fast: bool,
    alone: bool,
    dtype: DType,
    layout: Layout,
    policies: Sequence[Policy],
    tokens: int,
    widths: Widths,
    free_bytes: int,
    trained_bytes: int,
    vocabulary: int,
) -> tuple[int, Decision | None]:
    """Up to how many tokens micro-batches whose sizes recur are recorded and replayed.

    Activations of recordings have memory of their own, beside that of the largest micro-batch that is not recorded.

    Args:
        hardware: the machine.
        fast: whether every layer and the head are fast.
        alone: whether this process trains by itself.
        dtype: of activations.
        layout: of micro-batches.
        policies: what each layer keeps.
        tokens: most tokens of a micro-batch.
        widths: of one layer.
        free_bytes: as in `choose_activations`.
        trained_bytes: of trained parameters.
        vocabulary: columns of the logits.

    Returns:
        The tokens, 0 where none are recorded; and the decision, None where there is no GPU.
    """
    if not hardware.is_cuda:
        return 0, None
    logits = tokens * vocabulary * widths.item
    per_token = sum(kept_bytes(policy, widths) for policy in policies) + working_bytes(widths)
    room = activation_room(hardware, free_bytes, trained_bytes, logits) - 2 * min(logits, LOGITS_BYTES)
    most, least = min(tokens, max(0, room // per_token - tokens)), min(tokens, LEAST_REPLAYED)
    why = (
        "padded rows have any size" if layout == "padded"
        else "some modules run their own code" if not fast
        else "several processes exchange gradients" if not alone
        else f"attention in {dtype} asks the device for documents' lengths" if dtype == "float32"
        else "a loss scaler decides between steps" if dtype == "float16"
        else f"no memory for {least:,} tokens' activations twice" if most < least
        else ""
    )  # fmt: skip
    if why:
        return 0, Decision(part="launches", choice="one by one", why=why, fallback=layout != "padded")
    why = f"where a GPU waits for launches: micro-batches of up to {most:,} tokens whose sizes recur"
    return most, Decision(part="launches", choice="recorded and replayed", why=why)


def choose_turned(kept_values: int, own_values: int, trained_values: int, free_bytes: int) -> tuple[bool, Decision]:
    """Whether weights have an 8-bit copy that is turned round, or are turned at every use.

    Args:
        kept_values: of frozen 16-bit weights in fast layers, which need a copy by rows as well.
        own_values: of those that are kept in 8-bit floats already. 4-bit ones keep no copy.
        trained_values: of 16-bit weights that are trained, whose copies live from a forward to its backward.
        free_bytes: device memory that is free now.

    Returns:
        The choice: turned copies where half of what is free remains.

    Raises:
        CapabilityError: one copy would take nearly all that is free.
    """
    if 1.1 * kept_values > free_bytes:
        raise CapabilityError(
            "model.compute",
            f"'fp8' with {free_bytes / 2**30:.1f} GiB free",
            f"An 8-bit copy of this model's frozen weights takes {kept_values / 2**30:.1f} GiB beside them.",
            "Use 'bf16', load_in_fp8, or load_in_4bit, whose weights are written in 8 bits only when they are used.",
        )
    turned = 2 * (2 * kept_values + own_values) <= free_bytes
    needed = kept_values + turned * (kept_values + own_values)
    which = ("two copies" if kept_values else "turned copies") if turned else "one copy, turned when used"
    copies = (
        f"{needed / 2**30:.1f} GiB for {which}" if needed
        else f"{trained_values / 2**30:.1f} GiB for copies of what is trained, made in every step" if trained_values
        else "weights are turned when used" if own_values
        else "4-bit weights are written in 8 bits at every use"
    )  # fmt: skip
    return turned, Decision(part="products", choice="fp8", why=f"asked for; one scale per token and output; {copies}")


def say_products(asked: Decision, fast: int, layers: int, refused: Mapping[str, int]) -> tuple[Decision, ...]:
    """What 8-bit products became: the decision, and everything that stays in 16 bits.

    Args:
        asked: from `choose_turned`.
        fast: layers that are fast.
        layers: all.
        refused: groups of projections in them by the reason why they stay.
    """
    whys = [f"{count} groups: {why}" for why, count in refused.items()]
    if fast < layers:
        whys.append(f"{layers - fast} of {layers} layers run their own code")
    kept = [Decision(part="products", choice="bf16", why=why, fallback=True) for why in whys]
    return (asked, *kept) if fast else tuple(kept)


def choose_streaming(
    hardware: Hardware, *, asked: bool | None, weights_bytes: int, working_bytes: int, free_bytes: int
) -> tuple[bool, Decision]:
    """Whether a model that is to be quantized is on the device one layer at a time, and on the host else.

    Args:
        hardware: the machine.
        asked: None goes by what is free. Where the device has no memory of its own, weights are never in two places.
        weights_bytes: of the whole model, as it is loaded.
        working_bytes: what choosing codes needs beside them.
        free_bytes: device memory that is free with nothing loaded.
    """
    room = free_bytes - allocator_room(hardware)
    streamed = asked if asked is not None else hardware.is_cuda and weights_bytes + working_bytes > room
    if hardware.unified_memory:
        streamed, why = False, "the device's memory is the host's, nothing is gained by streaming"
    elif asked is not None:
        why = "asked for"
    elif not hardware.is_cuda:
        why = "they are computed where they are"
    else:
        needs = f"{weights_bytes / 2**30:.1f} GiB and {working_bytes / 2**30:.1f} GiB to work in"
        why = f"{needs}, {max(room, 0) / 2**30:.1f} GiB at hand"
    choice = f"one layer at a time on {hardware.device}" if streamed else f"all on {hardware.device}"
    return streamed, Decision(part="weights", choice=choice, why=why)


def choose_kernels(hardware: Hardware, triton: bool, failure: str = "") -> Decision:
    """Which kernels fast layers run.

    Args:
        hardware: the machine.
        triton: whether Triton is installed.
        failure: why Triton cannot run a kernel, as `hasten.kernels.choice.triton_failure` tells it; empty where it can.
    """
    if not hardware.is_cuda:
        return Decision(part="kernels", choice="plain torch", why="Triton's kernels are for GPUs; same numbers")
    if triton and failure:
        reason, remedy = failed_kernel(failure)
        why = f"Triton cannot run a kernel ({reason}): slower, same numbers; {remedy}"
        return Decision(part="kernels", choice="plain torch", why=why, fallback=True)
    if triton:
        return Decision(part="kernels", choice="Triton", why="on a GPU")
    why = "Triton is not installed: slower, same numbers; `pip install triton` brings it"
    return Decision(part="kernels", choice="plain torch", why=why, fallback=True)


def activation_room(hardware: Hardware, free_bytes: int, trained_bytes: int, logits_bytes: int) -> int:
    """Bytes for activations: what is free, less gradients, optimizer, a chunk of logits, and a twentieth.

    Allocators and libraries need room that nobody counts: the twentieth.

    Args:
        hardware: the machine.
        free_bytes: device memory that is free with weights and adapters loaded.
        trained_bytes: of trained parameters.
        logits_bytes: of all logits, if they were all in memory.
    """
    return free_bytes - allocator_room(hardware) - 3 * trained_bytes - 2 * min(logits_bytes, LOGITS_BYTES)


def allocator_room(hardware: Hardware) -> int:
    """Bytes that allocators and libraries need, and nobody counts: a twentieth of the device's memory."""
    return hardware.total_bytes // 20


def require_fp8(hardware: Hardware, dtype: str, where: str) -> None:
    """Refuse 8-bit products where a card has none.

    Args:
        hardware: the machine.
        dtype: what is computed in otherwise.
        where: what the user set, for messages.

    Raises:
        CapabilityError: the card has none.
        ConfigError: they do not go with the dtype.
    """
    if hardware.capability is None or hardware.capability < FP8_CAPABILITY:
        has = "no GPU" if hardware.capability is None else "compute capability {}.{}".format(*hardware.capability)
        raise CapabilityError(
            where,
            f"'fp8' on {hardware.name} ({has})",
            "8-bit products need compute capability {}.{} (Ada, Hopper, Blackwell).".format(*FP8_CAPABILITY),
            "Use 'bf16'.",
        )
    if dtype != "bfloat16":
        raise ConfigError(
            where,
            f"'fp8' with dtype '{dtype}'",
            "8-bit products give bfloat16.",
            "Use dtype 'bfloat16'.",
        )


def require_fp8_blocks(family: Family, model_type: str, where: str) -> None:
    """Refuse 8-bit products where a family has no fast path; arguments as in `make_plan` and `require_fp8`.

    Raises:
        ConfigError: it has none.
    """
    if family.blocks is None:
        rule = f"8-bit products are the fast path's, and '{model_type}' has none yet."
        raise ConfigError(where, "'fp8'", rule, "Use 'bf16'.")


def _choose_layout(
    hardware: Hardware, family: Family, model_type: str, request: Request, decisions: list[Decision]
) -> Layout:
    if request.packing == "off":
        decisions.append(Decision(part="rows", choice="padded", why="packing was turned off"))
        return "padded"
    if family.supports("packing"):
        cost = "lengths are rounded up to sizes that recur" if hardware.is_cuda else "no padding is computed"
        why = f"{family.name}: documents are isolated in attention, {cost}"
        decisions.append(Decision(part="rows", choice="packed", why=why))
        return "packed"
    if request.packing == "on":
        raise ConfigError(
            "training.packing",
            f"'on' for model type '{model_type}'",
            "No test shows yet that this architecture keeps packed documents apart.",
            "Use 'auto', which pads its rows.",
        )
    why = f"packing is not proven for model type '{model_type}'"
    decisions.append(Decision(part="rows", choice="padded", why=why, fallback=True))
    return "padded"
