"""llama.cpp's names for the ways of cutting text before merging.

It knows them by name and has each built in. Which one a tokenizer has is told by its cutting rules, not by what the
model is called, so that a renamed or extended tokenizer keeps its cut. Sources: the patterns that the tokenizers'
authors published, and llama.cpp's list of names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hasten.errors import CapabilityError

_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")

LLAMA_3 = rf"{_ENDINGS}|{_LETTERS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_BLANKS}"
QWEN_2 = rf"{_ENDINGS}|{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_BLANKS}"
TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"
GPT_4O = rf"{_CASED[0]}{_ENDINGS}?|{_CASED[1]}{_ENDINGS}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"

_NAMES: Mapping[tuple[str, ...], str] = {
    ("words",): "gpt-2",
    ("digits", "words"): "smollm",
    (LLAMA_3,): "dbrx",
    (QWEN_2,): "qwen2",
    (TEKKEN,): "tekken",
    (GPT_4O,): "gpt-4o",
}
"""By steps: a pattern's matches and what is between them, or one of the library's own steps; `words` is GPT-2's."""
_WHOLE_WORDS = {"dbrx": "llama-bpe", "tekken": "tekken"}
"""Of tokenizers that take a word which is a token as it is, without merging: their names."""


def cut_of(tokenizer: Mapping[str, Any], subject: str) -> str:
    """The name of a byte-level tokenizer's way of cutting.

    Args:
        tokenizer: tokenizer.json.
        subject: of an error.

    Raises:
        CapabilityError: llama.cpp has no name for it.
    """
    pre, normal = tokenizer.get("pre_tokenizer"), tokenizer.get("normalizer")
    steps = tuple(_steps(pre)) if pre is not None else ()
    name = _NAMES.get(steps)
    if name is not None and tokenizer["model"].get("ignore_merges"):
        name = _WHOLE_WORDS.get(name)
    if normal is not None and normal["type"] != "NFC":  # which llama.cpp leaves out; text is almost always in it
        steps, name = (f"normalizer {normal['type']}", *steps), None
    if name is None:
        words = " that takes whole words" if tokenizer["model"].get("ignore_merges") else ""
        raise CapabilityError(
            subject,
            f"a tokenizer{words} that cuts text by {list(steps)}",
            "llama.cpp knows ways of cutting by name, and this one has none.",
            "Export it to Hugging Face or vLLM.",
        )
    return name


def _steps(pre: Mapping[str, Any]) -> list[str]:
    kind = pre["type"]
    if kind == "Sequence":
        return [step for each in pre["pretokenizers"] for step in _steps(each)]
    if kind == "ByteLevel":
        before = ["a blank first"] if pre.get("add_prefix_space") else []
        return before + (["words"] if pre.get("use_regex", True) else [])
    if kind == "Digits":
        return ["digits"] if pre["individual_digits"] else ["runs of digits"]
    if kind == "Split":
        pattern = pre["pattern"].get("Regex") or repr(pre["pattern"].get("String"))
        whole = pre.get("behavior") == "Isolated" and not pre.get("invert")
        return [pattern if whole else f"{pattern} ({pre.get('behavior')})"]
    return [kind]
