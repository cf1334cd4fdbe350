"""Chat templates by name: one file each in `named/`, written from the public descriptions of the formats.

A model's own template is the better choice where it has one; these are for base models and for changing the format.
What an assistant writes, its end of turn included, stands between generation markers. Tests hold the rendered texts
against those of the formats' authors; where a template deviates on purpose, its first lines say so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hasten.data.generation_tag import check_template
from hasten.errors import ConfigError, did_you_mean, nearest

FOLDER = Path(__file__).parent / "named"
EOS = "eos_token"
"""Stands for the tokenizer's own end token."""
STOPS = {
    "alpaca": EOS,
    "chatml": "<|im_end|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "gemma": "<end_of_turn>",
    "llama-3": "<|eot_id|>",
    "llama-3.1": "<|eot_id|>",
    "mistral": EOS,
    "phi-3": "<|end|>",
    "phi-4": "<|im_end|>",
    "qwen-2.5": "<|im_end|>",
    "qwen-3": "<|im_end|>",
    "vicuna": EOS,
    "zephyr": EOS,
}
"""The templates, and the token that ends an assistant's turn in each."""
ALIASES = {
    **dict.fromkeys(("qwen-3-instruct", "qwen3-instruct"), "chatml"),
    **dict.fromkeys(("deepseek-v3", "deepseek3"), "deepseek"),
    **dict.fromkeys(("gemma2", "gemma-2", "gemma3", "gemma-3"), "gemma"),
    "llama3": "llama-3",
    **dict.fromkeys(("llama-31", "llama3.1", "llama-3.2", "llama-32", "llama3.2"), "llama-3.1"),
    **dict.fromkeys(("llama-3.3", "llama-33", "llama3.3"), "llama-3.1"),
    "mistral-v0.3": "mistral",
    **dict.fromkeys(("phi3", "phi-3.5", "phi-35", "phi3.5"), "phi-3"),
    "phi4": "phi-4",
    **dict.fromkeys(("qwen2.5", "qwen-25", "qwen25"), "qwen-2.5"),
    "qwen3": "qwen-3",
}
"""Other spellings, and models that share a format."""
_MOST_SHOWN = 60


def named_template(name: str) -> tuple[str, str]:
    """A template's text and the token that ends a turn (`EOS`: the tokenizer's own).

    Raises:
        ConfigError: no template has this name; the nearest is proposed.
    """
    key = _known(name)
    if key is None:
        remedy = did_you_mean(name.strip().lower(), (*STOPS, *ALIASES), "Leave it out to keep the model's own.")
        raise ConfigError("chat_template", repr(name), f"The named templates are {', '.join(STOPS)}.", remedy)
    return (FOLDER / f"{key}.jinja").read_text(encoding="utf-8").rstrip("\n"), STOPS[key]


def resolve_template(text: str, tokenizer: Any = None) -> str:
    """The Jinja text that the setting ``data.template`` means.

    Args:
        text: a name, the path of a file, or Jinja itself.
        tokenizer: if given, the end of turn of a named template is written as this tokenizer's end token where it is
            no token of it, so that the model can learn to stop.

    Raises:
        ConfigError: it is none of the three, a file that is missing or not UTF-8, or Jinja that is not valid.
    """
    subject = "data.template"
    if "{%" in text or "{{" in text:
        return check_template(text, subject)
    if _known(text):
        template, stop = named_template(text)
        return template if tokenizer is None else with_known_end(template, stop, tokenizer)
    path = Path(text).expanduser()
    if _is_file(path):
        return check_template(_read(path, text), f"{subject} {text}")
    shown = repr(text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "...")
    rule = f"It is a name ({', '.join(STOPS)}), a .jinja file, or Jinja text."
    raise ConfigError(subject, f"{shown} is none of them", rule, _remedy(path, text))


def with_known_end(template: str, stop: str, tokenizer: Any) -> str:
    """A template whose turns end in a token of this tokenizer: its own end token where `stop` is none."""
    if stop == EOS or stop in tokenizer.get_vocab() or not tokenizer.eos_token:
        return template
    return template.replace(stop, tokenizer.eos_token)


def _known(name: str) -> str | None:
    key = name.strip().lower()
    key = ALIASES.get(key, key)
    return key if key in STOPS else None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # longer than a name may be
        return False


def _read(path: Path, text: str) -> str:
    try:
        return path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as cause:
        line = cause.object.count(b"\n", 0, cause.start) + 1
        raise ConfigError(
            f"data.template {text}",
            f"line {line}: byte 0x{cause.object[cause.start]:02x} is not UTF-8",
            "Template files are UTF-8.",
            "Convert the file to UTF-8.",
        ) from cause
    except OSError as cause:
        rule = "The template is read from this file."
        raise ConfigError(
            f"data.template {text}", f"it cannot be read ({cause.strerror})", rule, "Check its permissions."
        ) from cause


def _remedy(path: Path, text: str) -> str:
    """The nearest file for what looks like one, otherwise the nearest name."""
    if path.suffix or len(path.parts) > 1:
        folder = path.parent
        try:
            files = [entry.name for entry in folder.iterdir() if entry.is_file()]
        except OSError:  # no such folder, or none that may be read
            files = []
        if match := nearest(path.name, files):
            return f"Did you mean '{folder / match}'?"
    return did_you_mean(text.strip().lower(), (*STOPS, *ALIASES), "Leave it empty to keep the model's own.")
