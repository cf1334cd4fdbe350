r"""How text is cut before merging, by the names that GGUF files use for it (``tokenizer.ggml.pre``).

The expressions are the tokenizers' own, as their tokenizer.json files publish them; llama.cpp runs rewritten ones of
the same meaning. Steps cut one after another, each within the pieces that the one before left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _BLANKS
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN35 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _BLANKS
)  # fmt: skip
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _BLANKS
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"{_CONTRACTIONS}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|" + _BLANKS
)
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    + _BLANKS
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
WORDS, DIGITS = "words", "digits"
"""GPT-2's expression as the last step, and single digits: tokenizers has both built in."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A way of cutting."""

    steps: tuple[str, ...]
    """`WORDS`, `DIGITS` or regular expressions."""
    whole_words: bool = False
    """A piece that is a token as a whole is not merged from its parts (``ignore_merges``)."""
    begin: bool = False
    """The begin token is added where the file does not say."""
    composed: bool = False
    """Text is put into Unicode's composed form (NFC) first. llama.cpp does not."""

    def as_json(self) -> dict[str, Any]:
        """As tokenizer.json has it."""
        parts = [_step(step) for step in self.steps]
        if self.steps[-1] != WORDS:
            parts.append(_bytes(use_regex=False))
        return parts[0] if len(parts) == 1 else {"type": "Sequence", "pretokenizers": parts}


_BY_CUT: tuple[tuple[Cut, tuple[str, ...]], ...] = (
    (Cut(steps=(WORDS,)), ("gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "gigachat", "a.x-4.0")),
    (Cut(steps=(WORDS,)), ("mellum", "modern-bert", "mpt", "olmo", "jais", "exaone4", "trillion", "granite-docling")),
    (Cut(steps=(DIGITS, WORDS)), ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")),
    (Cut(steps=(DIGITS, WORDS)), ("mellum2",)),
    (
        Cut(steps=(_LLAMA3,), whole_words=True, begin=True),
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    ),
    (Cut(steps=(_LLAMA3,)), ("dbrx", "smaug-bpe", "chatglm-bpe", "glm4")),
    (Cut(steps=(_QWEN2,), composed=True), ("qwen2",)),
    (Cut(steps=(_QWEN2,)), ("stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan", "solar-open", "grok-2", "kormo")),
    (Cut(steps=(_QWEN35,), composed=True), ("qwen35",)),
    (Cut(steps=(_TEKKEN,), whole_words=True, begin=True), ("tekken",)),
    (Cut(steps=(_GPT4O,)), ("gpt-4o", "llama4", "kanana2", "talkie")),
    (Cut(steps=(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3)), ("deepseek-v3", "hunyuan-dense", "joyai-llm")),
    (
        Cut(steps=("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", DIGITS)),
        ("deepseek-coder",),
    ),
    (Cut(steps=(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")), ("default",)),
)
CUTS: Mapping[str, Cut] = MappingProxyType({name: cut for cut, names in _BY_CUT for name in names})
"""By llama.cpp's name."""


def _step(step: str) -> dict[str, Any]:
    if step == WORDS:
        return _bytes(use_regex=True)
    if step == DIGITS:
        return {"type": "Digits", "individual_digits": True}
    return {"type": "Split", "pattern": {"Regex": step}, "behavior": "Isolated", "invert": False}


def _bytes(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}
