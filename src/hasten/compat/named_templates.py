"""Chat templates by name: files in `templates/`, written from the public descriptions of the formats.

A model's own template is the better choice where it has one; these are for base models and for changing the format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from hasten.errors import ConfigError, did_you_mean

FOLDER = Path(__file__).parent / "templates"
EOS = "eos_token"
"""Stands for the tokenizer's own end token."""
_STOPS = {
    "alpaca": EOS,
    "chatml": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "llama-3": "<|eot_id|>",
    "llama-3.1": "<|eot_id|>",
    "mistral": EOS,
    "phi-3": "<|end|>",
    "phi-4": "<|im_end|>",
    "qwen-2.5": "<|im_end|>",
    "vicuna": EOS,
    "zephyr": EOS,
}
_ALIASES = {
    **dict.fromkeys(("gemma2", "gemma-2", "gemma3", "gemma-3"), "gemma"),
    "llama3": "llama-3",
    **dict.fromkeys(("llama-31", "llama-3.2", "llama-32", "llama-3.3", "llama-33"), "llama-3.1"),
    **dict.fromkeys(("phi3", "phi-3.5", "phi-35"), "phi-3"),
    "phi4": "phi-4",
    **dict.fromkeys(("qwen2.5", "qwen-25", "qwen25"), "qwen-2.5"),
}


def named_template(name: str) -> tuple[str, str]:
    """A template's text and the token that ends a turn (`EOS`: the tokenizer's own).

    Raises:
        ConfigError: no template has this name; the nearest is proposed.
    """
    key = name.strip().lower()
    key = _ALIASES.get(key, key)
    if key not in _STOPS:
        remedy = did_you_mean(key, (*_STOPS, *_ALIASES), "Leave get_chat_template out to keep the model's own.")
        raise ConfigError("chat_template", repr(name), f"The named templates are {', '.join(_STOPS)}.", remedy)
    return (FOLDER / f"{key}.jinja").read_text(encoding="utf-8").rstrip("\n"), _STOPS[key]


class ChatTemplates(Mapping[str, tuple[str, str]]):
    """All named templates: name -> (text, token that ends a turn); the texts are read when they are asked for."""

    def __getitem__(self, name: str) -> tuple[str, str]:
        if name not in _STOPS and name not in _ALIASES:
            raise KeyError(name)
        return named_template(name)

    def __iter__(self) -> Iterator[str]:
        return iter((*_STOPS, *_ALIASES))

    def __len__(self) -> int:
        return len(_STOPS) + len(_ALIASES)


CHAT_TEMPLATES = ChatTemplates()
