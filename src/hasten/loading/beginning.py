"""What an adapter began with, in a file beside it.

On 4-bit weights (`hasten.lora.loftq` makes such beginnings):

    Q + s B A               what was trained, Q the 4-bit weights: an ordinary adapter that fits them
    W + s (B A - B0 A0)     the same of the 16-bit weights W: what it began with, s B0 A0, only made up for W - Q

So whatever brings the adapter to other weights than Q has to know B0 and A0. Checkpoints of adapters that began inside
the weights (`hasten.lora.initial`) have the file too: whoever resumes them makes the same base of it. The file also
holds the hash of the adapter's own file: peft writes into folders as they are, and one may hold the beginning of an
earlier adapter.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hasten.errors import ModelError
from hasten.loading.four_bit import in_nf4
from hasten.loading.plain_adapter import write_whole

FILE = "adapter_beginning.safetensors"
ADAPTER = "default"
"""peft's name for a model's only adapter."""
_NAME = "hasten_beginning"
_PREFIX = "base_model.model."
_FACTORS = (".lora_A.weight", ".lora_B.weight")
Taking = Callable[[Any, dict[str, Any] | None], None]


def factors_of(model: Any) -> dict[str, Any]:
    """A copy of an adapter's factors in the computer's memory, by peft's names."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: part.detach().to("cpu", copy=True) for name, part in state.items() if name.endswith(_FACTORS)}


def beginning_of(model: Any) -> dict[str, Any] | None:
    """The factors that an adapter began with, where these made up for its 4-bit weights."""
    return vars(model).get(_NAME)


def keep_beginning(model: Any, factors: dict[str, Any]) -> None:
    """Remember what an adapter began with, and let it travel with the adapter."""
    carry(model, _NAME, factors, _replace)


def carry(model: Any, name: str, factors: dict[str, Any], take: Taking) -> None:
    """Let what an adapter began with travel with it.

    `save_pretrained` and `load_adapter`, bound on this one object, write it and read it: trainers save and resume
    through them.

    Args:
        model: a `PeftModel`.
        name: the attribute that remembers it.
        factors: what the adapter began with.
        take: what becomes of a beginning that was read (None: there was no file).
    """
    vars(model)[name] = factors
    model.save_pretrained = functools.partial(save_with_beginning, model, beginning=name)
    model.load_adapter = functools.partial(_load, model, taking=take)


def _replace(model: Any, began: dict[str, Any] | None) -> None:
    vars(model)[_NAME] = began


def added_at_first(began: Mapping[str, Any] | None, name: str, module: Any) -> Any:
    """What a module's adapter added when it began: s B0 A0 ``[N, K]`` in float32; None where that was nothing.

    Args:
        began: `beginning_of` the model.
        name: the module's, in the plain model.
        module: peft's layer.
    """
    a, b = ((began or {}).get(f"{_PREFIX}{name}{factor}") for factor in _FACTORS)
    if a is None or b is None or ADAPTER not in module.active_adapters:
        return None
    device = module.lora_A[ADAPTER].weight.device
    return (b.to(device).float() @ a.to(device).float()) * module.scaling[ADAPTER]


def fits(base: Any, began: Mapping[str, Any], where: str) -> bool:
    """Whether the weights under an adapter are in NF4, as those were that it was trained on.

    Args:
        base: a plain model.
        began: what the adapter began with.
        where: the adapter, for the message.

    Raises:
        ModelError: some are, others are not.
    """
    modules = dict(base.named_modules())
    names = {name.removeprefix(_PREFIX).removesuffix(factor) for name in began for factor in _FACTORS}
    nf4 = {name: in_nf4(modules[name]) for name in sorted(names) if name in modules}
    if any(nf4.values()) and not all(nf4.values()):
        others = [name for name, kept in nf4.items() if not kept]
        raise ModelError(
            where,
            f"{len(others)} of the {len(nf4)} weights that it adapts are not in NF4 (first: {others[0]})",
            "It began as what NF4 lost of them, so it fits weights that all are, or, without its beginning, none.",
            "Load it with load_in_4bit alone, or without.",
        )
    return all(nf4.values())


def read_beginning(file: Path, weights: Path) -> dict[str, Any]:
    """The factors in a file.

    Args:
        file: from `keep_beginning`.
        weights: the adapter's own file.

    Raises:
        ModelError: the file was written beside another adapter.
    """
    from safetensors import safe_open

    with safe_open(str(file), "pt") as opened:
        if (opened.metadata() or {}).get("adapter") != _digest(weights):
            raise ModelError(
                str(file),
                f"it was not written beside this {weights.name}",
                "It says what one adapter began with, and would be subtracted from another.",
                "Put back the adapter that it was saved with, or delete it where this one began at zero.",
            )
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def save_with_beginning(
    model: Any,
    save_directory: Any,
    safe_serialization: bool = True,
    selected_adapters: list[str] | None = None,
    save_embedding_layers: bool | str = "auto",
    is_main_process: bool = True,
    *,
    beginning: str,
    **kwargs: Any,
) -> None:
    """peft's `save_pretrained`, and the beginning beside what it wrote; `beginning` is the attribute that has it."""
    given = (safe_serialization, selected_adapters, save_embedding_layers, is_main_process)
    type(model).save_pretrained(model, save_directory, *given, **kwargs)
    began = vars(model).get(beginning)
    if began is not None and is_main_process and ADAPTER in (selected_adapters or [ADAPTER]):
        folder = Path(save_directory)
        weights = folder / f"adapter_model.{'safetensors' if safe_serialization else 'bin'}"
        write_whole(began, folder / FILE, adapter=_digest(weights))


def _load(model: Any, model_id: Any, adapter_name: str, *args: Any, taking: Taking, **kwargs: Any) -> Any:
    """peft's `load_adapter`; an adapter that takes the place of the one there has its own beginning, or none."""
    folder = Path(model_id) / (kwargs.get("subfolder") or "")
    if adapter_name == ADAPTER and not folder.is_dir():
        raise ModelError(
            str(model_id),
            "no folder on this computer",
            "What the adapter began with is read beside it.",
            "Load it with from_pretrained, or download it first.",
        )
    loaded = type(model).load_adapter(model, model_id, adapter_name, *args, **kwargs)
    if adapter_name == ADAPTER:
        taking(model, beginning_in(folder))
    return loaded


def beginning_in(folder: Path) -> dict[str, Any] | None:
    """What the adapter in a folder began with; None where no file says so.

    Raises:
        ModelError: the file was written beside another adapter.
    """
    file = folder / FILE
    weights = [file.with_name(f"adapter_model.{kind}") for kind in ("safetensors", "bin")]
    there = next((path for path in weights if path.is_file()), weights[0])
    return read_beginning(file, there) if file.is_file() else None


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
