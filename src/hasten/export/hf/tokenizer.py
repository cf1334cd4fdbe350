"""A model's tokenizer as its base has it; what training changed of it comes from the adapter's folder.

Files of the base are copied byte for byte, also those that nothing here knows. A tokenizer that was used and saved
again carries what its use left on it (truncation, padding, sides, a class name that only one version of transformers
knows), so of the adapter's only this is taken: another vocabulary, other special tokens, another chat template.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from hasten.data.generation_tag import without_markers
from hasten.files import write_json, write_text
from hasten.loading.gguf import NOTES
from hasten.loading.source import read_json

TOKENIZER, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
_SPECIAL_MAP = "special_tokens_map.json"
_KEY = "chat_template"
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token")
_OF_VOCABULARY = (*_SPECIAL, "pad_token", "additional_special_tokens", "extra_special_tokens", "added_tokens_decoder")
_LEFT_BY_USE = ("truncation", "padding")
_OLD_VOCABULARY = ("vocab.json", "merges.txt", "vocab.txt", "added_tokens.json", _SPECIAL_MAP)
"""What says the base's vocabulary once more, and would be wrong beside another one."""
_LOADABLE = "PreTrainedTokenizerFast"
_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".index.json", ".py", ".ot",
    ".tmp",
)  # fmt: skip
_OWN = ("config.json", "generation_config.json", "README.md", "quantization.json", "quantization.html", NOTES)


def copied(base: Path) -> list[Path]:
    """The files beside a base's weights that go along: its tokenizer's, its licence, and whatever else is there."""
    found = [path for path in sorted(base.iterdir()) if path.is_file() and not path.name.startswith(".")]
    return [
        path
        for path in found
        if not path.name.endswith(_WEIGHTS) and path.name not in _OWN and not path.name.startswith("adapter_")
    ]


def tokenizer_folder(base: Path, adapter: Path) -> Path:
    """Which of both has the tokenizer that the adapter was trained with: the base, unless training changed it."""
    if not (adapter / SETTINGS).is_file():
        return base
    other = _vocabulary_differs(base, adapter) or _special_changes(base, adapter) or _new_template(base, adapter)
    return adapter if other else base


def write_tokenizer(base: Path, adapter: Path | None, target: Path) -> list[str]:
    """Write a tokenizer's files into a folder.

    Args:
        base: a model's folder.
        adapter: the folder of an adapter on it, or None.
        target: is there.

    Returns:
        What is not the base's, one sentence each.

    Raises:
        ModelError: a file of settings is no JSON.
    """
    notes: list[str] = []
    for path in copied(base):
        shutil.copyfile(path, target / path.name)
    settings = before = _settings(base)
    own = _template(base)
    template = own
    if adapter is not None and (adapter / SETTINGS).is_file():
        after = _settings(adapter)
        if _vocabulary_differs(base, adapter):
            _write_vocabulary(base, adapter, target)
            settings = {**after, **settings} if not before else dict(settings)
            settings |= {key: after[key] for key in _OF_VOCABULARY if key in after}
            if "pad_token" in before:
                settings["pad_token"] = before["pad_token"]
            notes.append("the tokenizer's vocabulary is the one that the adapter was trained with")
        elif changes := _special_changes(base, adapter):
            settings = {**settings, **changes}
            if (target / _SPECIAL_MAP).is_file():
                write_json(target / _SPECIAL_MAP, {**read_json(target / _SPECIAL_MAP), **changes})
            notes.append(f"{', '.join(sorted(changes))} of the tokenizer: as the adapter was trained with")
        if new := _new_template(base, adapter):
            template = new
            notes.append("the chat template is the one that the adapter was trained with")
    name = settings.get("tokenizer_class")
    if isinstance(name, str) and name.endswith("Backend"):  # transformers 5's own word, which no other program knows
        settings = {**settings, "tokenizer_class": _LOADABLE}
    if template is not None and not (template == own and isinstance(before.get(_KEY), list)):
        template = without_markers(template)
        settings = {**settings, _KEY: template}
        if not (target / TEMPLATE).is_file() or _text(target / TEMPLATE) != template:
            write_text(target / TEMPLATE, template)
    if settings != before:
        write_json(target / SETTINGS, settings)
    return notes


def _write_vocabulary(base: Path, adapter: Path, target: Path) -> None:
    made = read_json(adapter / TOKENIZER)
    own = read_json(base / TOKENIZER) if (base / TOKENIZER).is_file() else {}
    for key in _LEFT_BY_USE:
        made[key] = own.get(key)
    write_json(target / TOKENIZER, made)
    for name in _OLD_VOCABULARY:
        (target / name).unlink(missing_ok=True)


def _vocabulary_differs(base: Path, adapter: Path) -> bool:
    """Whether a token has another id. How a file spells the same vocabulary depends on the version that wrote it."""
    after = _ids(adapter)
    return after is not None and after != _ids(base)


def _ids(folder: Path) -> dict[str, int] | None:
    if not (folder / TOKENIZER).is_file():
        return None
    content: Any = read_json(folder / TOKENIZER)
    vocabulary = content["model"].get("vocab") or {}
    if isinstance(vocabulary, list):  # pairs of a token and its score
        vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
    return vocabulary | {token["content"]: token["id"] for token in content.get("added_tokens") or ()}


def _special_changes(base: Path, adapter: Path) -> dict[str, Any]:
    """Begin and end token, where training was with others. Others are given by classes, also where a base has none."""
    before, after = _settings(base), _settings(adapter)
    if not before:
        return {}
    named = {**(read_json(base / _SPECIAL_MAP) if (base / _SPECIAL_MAP).is_file() else {}), **before}
    found = {key: after[key] for key in ("bos_token", "eos_token") if after.get(key) is not None}
    found = {key: token for key, token in found.items() if key == "eos_token" or named.get(key) is not None}
    return {key: _content(token) for key, token in found.items() if _content(token) != _content(named.get(key))}


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _settings(folder: Path) -> dict[str, Any]:
    return read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}


def _new_template(base: Path, adapter: Path) -> str | None:
    """The adapter's template, where it is another than the base's."""
    own, new = _template(base), _template(adapter)
    if new is None or (own is not None and without_markers(new) == without_markers(own)):
        return None
    return new


def _template(folder: Path) -> str | None:
    """A folder's default template: the file's, as transformers chooses, or the settings'."""
    if (folder / TEMPLATE).is_file():
        return _text(folder / TEMPLATE)
    found = _settings(folder).get(_KEY)
    if isinstance(found, list):
        return next((each["template"] for each in found if each.get("name") == "default"), None)
    return found


def _text(path: Path) -> str:
    with path.open(encoding="utf-8", newline="") as file:  # line ends as they are
        return file.read()


def vocabulary_size(folder: Path) -> int | None:
    """How many ids a folder's tokenizer.json has; None where there is none."""
    ids = _ids(folder)
    return None if ids is None else max(ids.values(), default=-1) + 1
