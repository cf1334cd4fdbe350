"""`save_pretrained_gguf`: the live model, merged, as GGUF files with a Modelfile, in the folder that scripts expect."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hasten.compat.later import BUFFERS
from hasten.compat.merged import clean_tokenizer
from hasten.compat.notes import say
from hasten.compat.offered import Unoffered, require_defaults
from hasten.compat.origin import origin_of
from hasten.compat.saving import save_pretrained_merged
from hasten.errors import ConfigError, StorageError, did_you_mean
from hasten.export.gguf.dynamic import NAME as DYNAMIC
from hasten.export.gguf.mixes import BASE, named
from hasten.export.hf.base import open_model
from hasten.export.job import Request, export, plain_name
from hasten.export.targets import Wanted
from hasten.export.verify.checks import lines
from hasten.files import make_folder, new_folder, put, require_writable

METHODS = {"not_quantized": "f16", "fast_quantized": "q8_0", "quantized": "q4_k_m"}
"""What scripts call types that have no name of their own."""
FIRST = ("f32", "f16", "bf16")
_HUB = "Save into a folder, then run `hf upload REPO FOLDER`."
_UNOFFERED = {
    "push_to_hub": Unoffered((False,), _HUB),
    "state_dict": Unoffered((None,), "Leave it out: the live model's own weights are saved."),
    "variant": Unoffered((None,), "Leave it out and name the folder accordingly."),
    "save_method": Unoffered((None, "merged_16bit"), "Leave it out."),
}


def save_pretrained_gguf(
    model: Any,
    save_directory: str | Path,
    tokenizer: Any = None,
    quantization_method: str | list[str] = "fast_quantized",
    first_conversion: str | None = None,
    push_to_hub: bool = False,
    token: str | bool | None = None,
    private: bool | None = None,
    is_main_process: bool = True,
    state_dict: dict[str, Any] | None = None,
    save_function: Any = None,
    max_shard_size: str | int = "5GB",
    safe_serialization: bool = True,
    variant: str | None = None,
    save_peft_format: bool = True,
    tags: list[str] | None = None,
    temporary_location: str = BUFFERS,
    maximum_memory_usage: float = 0.85,
    save_method: str | None = None,
    imatrix_file: str | None = None,
    merge_is_disposable: bool = True,
) -> dict[str, Any] | None:
    """Save a model as GGUF files with an Ollama Modelfile beside them, read back and compared.

    Args:
        model: a `PeftModel` or a plain transformers model.
        save_directory: files go into this folder with ``_gguf`` at its end.
        tokenizer: the tokenizer; None is the one that was loaded with the model.
        quantization_method: a type (``q4_k_m``, ``Q8_0``, ``f16`` ...), ``"dynamic"``, ``"not_quantized"`` (f16),
            ``"fast_quantized"`` (q8_0), ``"quantized"`` (q4_k_m), or several in a list.
        first_conversion: without effect: every file is made from the merged weights themselves.
        push_to_hub: must be False.
        token: for the hub; without effect.
        private: for the hub; without effect.
        is_main_process: False writes nothing.
        state_dict: must be None.
        save_function: without effect.
        max_shard_size: of the merged folder, where it is kept.
        safe_serialization: without effect: the merged folder has safetensors.
        variant: must be None.
        save_peft_format: without effect.
        tags: for a model card on the hub; without effect.
        temporary_location: without effect.
        maximum_memory_usage: without effect: one weight is in memory at a time.
        save_method: None or ``"merged_16bit"``.
        imatrix_file: an importance matrix of llama-imatrix's.
        merge_is_disposable: False keeps the merged 16-bit folder in `save_directory`.

    Returns:
        ``save_directory``, ``gguf_files`` and ``modelfile_location``; None in other processes than the main one.

    Raises:
        CapabilityError: an argument that is not offered, or a family that has no GGUF form here.
        ConfigError: an unknown type, or a folder that holds something else.
        ModelError: what was read back is not what was meant.
        StorageError: the disk is full or not writable.
    """
    require_defaults("save_pretrained_gguf", locals(), _UNOFFERED)
    kinds = types_of(quantization_method)
    if first_conversion is not None and str(first_conversion).lower() not in FIRST:
        remedy = did_you_mean(str(first_conversion), FIRST, "Leave it out.")
        raise ConfigError("first_conversion", repr(first_conversion), f"Allowed: {', '.join(FIRST)}.", remedy)
    if not is_main_process:
        return None
    given = Path(save_directory).expanduser().absolute()
    folder = given.with_name(f"{given.name}_gguf")
    require_writable(folder)
    _require_replaceable(folder)
    origin = origin_of(model)
    if tokenizer is None and origin is not None:
        tokenizer = origin.tokenizer
    matrix: Path | bool = Path(imatrix_file) if imatrix_file else False
    make_folder(folder.parent)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        merged = given if not merge_is_disposable else Path(scratch) / "merged"
        save_pretrained_merged(model, merged, clean_tokenizer(tokenizer) if tokenizer is not None else None,
                               max_shard_size=max_shard_size)  # fmt: skip
        request = Request(
            wanted=Wanted(gguf=kinds, ollama=""),
            output=Path(scratch) / "export",
            importance=matrix,
            name=plain_name(given.name),
        )
        try:
            done = export(open_model(merged), request, tell=say)
        finally:
            if (refused := Path(scratch) / "export" / "refused-gguf").is_dir():
                put(refused, folder.with_name(f"refused-{folder.name}"))
        with new_folder(folder) as temporary:
            for file in sorted((Path(scratch) / "export" / "gguf").iterdir()):
                shutil.move(str(file), temporary / file.name)
            for old in sorted(folder.glob("*.gguf")) if folder.is_dir() else ():
                if not (temporary / old.name).exists():  # another type, from an earlier call
                    shutil.copyfile(old, temporary / old.name)
    for note in done.notes:
        say(note)
    for line in lines(done.checks):
        say(line)
    files = [str(folder / Path(each["path"]).name) for each in done.targets["gguf"]["files"].values()]
    say(f"GGUF files and Modelfile saved in {folder}; for Ollama: ollama create NAME -f {folder / 'Modelfile'}")
    return {"save_directory": str(folder), "gguf_files": files, "modelfile_location": str(folder / "Modelfile")}


def types_of(method: str | list[str] | tuple[str, ...] | None) -> tuple[str, ...]:
    """The types that a script asks for.

    Raises:
        ConfigError: an unknown one, or none.
    """
    asked = [method] if isinstance(method, str) or method is None else list(method)
    found = []
    for each in asked:
        word = "fast_quantized" if each is None else str(each).strip().lower()
        found.append(METHODS.get(word) or named(word, DYNAMIC))
    if not found:
        raise ConfigError("quantization_method", "an empty list", "At least one type is written.", "Use 'q4_k_m'.")
    return tuple(dict.fromkeys(found))


def print_quantization_methods() -> None:
    """Print every word that `quantization_method` takes."""
    for word, kind in METHODS.items():
        print(f"{word:16} {kind}")
    for kind in (*BASE, DYNAMIC):
        print(kind)


def _require_replaceable(folder: Path) -> None:
    """An existing folder is replaced as a whole, so it may hold only what was saved here before."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise StorageError(str(folder), "a file", "GGUF files are saved in a folder.", "Choose another name.")
    foreign = sorted(each.name for each in folder.iterdir() if each.suffix != ".gguf" and each.name != "Modelfile")
    if foreign:
        rule = "Saving replaces the folder as a whole."
        raise ConfigError(f"save_directory '{folder}'", f"it holds '{foreign[0]}'", rule, "Choose another folder.")
