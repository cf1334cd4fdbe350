"""A tokenizer as GGUF has it: tokens, their kinds, merges, and the name of what cuts text before merging.

Read from tokenizer.json alone. llama.cpp knows the ways of cutting by names of its own; which one a tokenizer has is
told by its cutting rules, not by what the model is called.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType

from hasten.errors import CapabilityError

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_CUTS: dict[tuple[str, ...], str] = {
    ("words",): "gpt-2",
    ("digits", "words"): "smollm",
    (_LLAMA3,): "llama-bpe",
    (_QWEN2,): "qwen2",
}
"""llama.cpp's names of what cuts text; `words` is GPT-2's own pattern."""


@dataclass(frozen=True)
class Vocabulary:
    """What the file says of the tokenizer."""

    cut: str
    tokens: list[str]
    kinds: list[TokenType]
    merges: list[str]


def read(folder: Path, rows: int) -> Vocabulary:
    """The vocabulary of a folder.

    Args:
        folder: with tokenizer.json.
        rows: of the embedding; ids beyond the tokenizer's are unused tokens.

    Raises:
        CapabilityError: a tokenizer of another kind than byte-level BPE, or one that cuts text in an unknown way.
    """
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = tokenizer["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise CapabilityError(
            str(folder),
            f"a tokenizer of kind {model.get('type')}",
            "GGUF files are written for byte-level BPE tokenizers.",
            "Export it to Hugging Face or vLLM.",
        )
    tokens = [f"[PAD{number}]" for number in range(rows)]
    kinds = [TokenType.UNUSED] * rows
    for text, number in model["vocab"].items():
        tokens[number], kinds[number] = text, TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return Vocabulary(_cut(folder, tokenizer.get("pre_tokenizer")), tokens, kinds, merges)


def _cut(folder: Path, pre: dict[str, Any] | None) -> str:
    steps = tuple(_steps(pre)) if pre is not None else ()
    if steps not in _CUTS:
        raise CapabilityError(
            str(folder),
            f"its tokenizer cuts text by {list(steps)}",
            "llama.cpp knows ways of cutting by name, and this one has none here.",
            "Export it to Hugging Face or vLLM.",
        )
    return _CUTS[steps]


def _steps(pre: dict[str, Any]) -> list[str]:
    kind = pre["type"]
    if kind == "Sequence":
        return [step for each in pre["pretokenizers"] for step in _steps(each)]
    if kind == "ByteLevel":
        return ["words"] if pre.get("use_regex", True) else []
    if kind == "Digits":
        return ["digits"] if pre["individual_digits"] else ["digit runs"]
    if kind == "Split":
        return [pre["pattern"].get("Regex") or repr(pre["pattern"].get("String"))]
    return [kind]
