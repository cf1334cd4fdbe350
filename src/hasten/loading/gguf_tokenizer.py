"""A GGUF's vocabulary as tokenizer.json and tokenizer_config.json.

Two kinds of vocabulary are read. Byte-level BPE (``gpt2``) has its merges in the file; what cuts text before merging is
a name there, and a table here says what it means. SentencePiece's BPE (``llama``) has a score per token in place of
merges: a merge is as early as its result's score is high, so every way to make a token of two is listed in the order
of scores, and bytes stand in for characters without a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hasten.errors import ModelError
from hasten.loading import gguf_fields
from hasten.loading.gguf_cuts import CUTS, Cut
from hasten.loading.gguf_file import GgufFile

_KEY = "tokenizer.ggml."
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5
_SPECIALS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "sep_token": "seperator_token_id",
    "mask_token": "mask_token_id",
}
_BLANK = "▁"
_TURN_ENDS = ("eot_token_id", "eom_token_id")
_PHI3_OPEN = ("<unk>", "<s>", "<|endoftext|>")
"""Phi-3's markers take the blanks behind them, except these (llama.cpp knows that by the model too)."""


@dataclass(frozen=True)
class TokenizerFiles:
    """What a folder says of its tokenizer."""

    tokenizer: dict[str, Any]
    """tokenizer.json."""
    config: dict[str, Any]
    """tokenizer_config.json."""
    template: str | None
    """chat_template.jinja."""
    notes: tuple[str, ...] = ()
    """What had to be assumed, one sentence each."""


def tokenizer_files(file: GgufFile) -> TokenizerFiles:
    """The tokenizer of a GGUF model.

    Raises:
        ModelError: there is none, or one of a kind that is not read.
    """
    kind = _text(file, "model")
    if kind not in ("gpt2", "llama"):
        raise ModelError(
            str(file.path),
            f"a tokenizer of kind '{kind}'" if kind else "no tokenizer",
            "Byte-level BPE ('gpt2') and SentencePiece BPE ('llama') are read.",
            "Use the model's Hugging Face folder.",
        )
    tokens = _tokens(file)
    kinds = _kinds(file, tokens)
    notes: tuple[str, ...] = ()
    if kind == "gpt2":
        name, notes = _cut_name(file, tokens)
        cut = _cut(file, name)
        body, begin = _byte_level(file, tokens, kinds, cut), cut.begin
    else:
        body, begin = _sentence_piece(file, tokens, kinds), True
    added = [
        _added(file, number, tokens[number], kinds[number]) for number in range(len(tokens)) if _is_added(kinds[number])
    ]
    body = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        **body,
        "post_processor": _around(file, tokens, begin, byte_level=kind == "gpt2"),
    }
    config = _config(file, tokens)
    if file.arch == "qwen2":
        # transformers makes this family's tokenizer anew from the vocabulary: it asks for these, and would add its own
        # end token, beyond the embedding, where one of them is not named.
        ends = {"add_bos_token": _flag(file, "bos", begin), "add_eos_token": _flag(file, "eos", False)}
        config = {"unk_token": None, "eos_token": None, "pad_token": None, **ends, **config}
    return TokenizerFiles(_ordered(body), config, _text(file, "chat_template", "tokenizer."), notes)


def end_tokens(file: GgufFile) -> list[int]:
    """Ids at which generation stops: the end of a text, and the ends of a turn where the file names them."""
    names = ("eos_token_id", *_TURN_ENDS)
    rows = len(_raw(file))
    found = [_token(file, name, rows) for name in names]
    return list(dict.fromkeys(number for number in found if number is not None))


def _text(file: GgufFile, name: str, where: str = _KEY) -> str | None:
    value = file.fields.get(where + name)
    return None if value is None else gguf_fields.text(file.path, where + name, value)


def _token(file: GgufFile, name: str, count: int) -> int | None:
    value = file.fields.get(_KEY + name)
    if value is None:
        return None
    number = gguf_fields.whole(file.path, _KEY + name, value, most=gguf_fields.POSITIONS)
    if number >= count:
        raise ModelError(
            str(file.path),
            f"{name} {number} of {count} tokens",
            "Special tokens are tokens of the vocabulary.",
            "Convert the model again with a current converter.",
        )
    return number


def _raw(file: GgufFile) -> list[str]:
    return gguf_fields.texts(file.path, f"{_KEY}tokens", file.fields.get(f"{_KEY}tokens", []))


def _tokens(file: GgufFile) -> list[str]:
    """Texts by id, without the fillers that converters put behind the last token."""
    tokens = list(_raw(file))
    kinds = _kinds(file, tokens)
    while tokens and kinds[len(tokens) - 1] == _UNUSED and tokens[-1] == f"[PAD{len(tokens) - 1}]":
        tokens.pop()
    if not tokens:
        raise ModelError(str(file.path), "no tokens", "A model has a vocabulary.", "Download it again.")
    return tokens


def _kinds(file: GgufFile, tokens: list[str]) -> list[int]:
    name = f"{_KEY}token_type"
    kinds = [int(kind) for kind in gguf_fields.numbers(file.path, name, file.fields.get(name, []))]
    if kinds and len(kinds) < len(tokens):
        raise gguf_fields.wrong(file.path, f"the number of {name}", len(kinds), f"There are {len(tokens)} tokens.")
    return kinds or [_NORMAL] * len(tokens)


def _is_added(kind: int) -> bool:
    return kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)


def _added(file: GgufFile, number: int, text: str, kind: int) -> dict[str, Any]:
    greedy = file.arch == "phi3" and file.fields[f"{_KEY}model"] == "llama" and text not in _PHI3_OPEN
    return {
        "id": number,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": greedy,
        "normalized": False,
        "special": kind != _USER_DEFINED,
    }


def _cut_name(file: GgufFile, tokens: list[str]) -> tuple[str, tuple[str, ...]]:
    """What cuts text, and what had to be assumed: files from before spring 2024 do not say."""
    name = _text(file, "pre")
    if name is not None:
        return name, ()
    name = "gpt-2"
    if file.arch in ("qwen2", "qwen3"):
        name = "qwen2"
    elif "<|begin_of_text|>" in tokens:
        name = "llama-bpe"
    return name, (f"the GGUF does not say how its tokenizer cuts text; taken for '{name}'",)


def _cut(file: GgufFile, name: str) -> Cut:
    if name not in CUTS:
        raise ModelError(
            str(file.path),
            f"a tokenizer that cuts text by '{name}'",
            f"Known are {', '.join(sorted(CUTS))}.",
            "Use the model's Hugging Face folder.",
        )
    return CUTS[name]


def _byte_level(file: GgufFile, tokens: list[str], kinds: list[int], cut: Cut) -> dict[str, Any]:
    pairs = gguf_fields.texts(file.path, f"{_KEY}merges", file.fields.get(f"{_KEY}merges", []))
    merges = [pair.split(" ", 1) for pair in pairs]
    vocabulary = _by_text(tokens)
    _require_merges(file, merges, vocabulary)
    return {
        "normalizer": {"type": "NFC"} if cut.composed else None,
        "pre_tokenizer": cut.as_json(),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(vocabulary, merges, ignore_merges=cut.whole_words),
    }


def _require_merges(file: GgufFile, merges: list[list[str]], vocabulary: dict[str, int]) -> None:
    for pair in merges:
        if len(pair) != 2 or pair[0] not in vocabulary or pair[1] not in vocabulary or "".join(pair) not in vocabulary:
            raise ModelError(
                str(file.path),
                f"merge '{' '.join(pair)}' of tokens that are not there",
                "Merges join two tokens to a third.",
                "Download it again.",
            )
    if not merges:
        raise ModelError(
            str(file.path),
            "a byte-level vocabulary without merges",
            "They say how words are put together.",
            "Convert the model again with a current converter.",
        )


def _sentence_piece(file: GgufFile, tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    scores = gguf_fields.numbers(file.path, f"{_KEY}scores", file.fields.get(f"{_KEY}scores", []))
    if len(scores) < len(tokens):
        raise ModelError(
            str(file.path),
            f"{len(scores)} scores for {len(tokens)} tokens",
            "Scores say in which order a SentencePiece vocabulary is merged.",
            "Convert the model again with a current converter.",
        )
    name = f"{_KEY}add_space_prefix"
    prefix = gguf_fields.flag(file.path, name, file.fields.get(name, True))
    steps: list[dict[str, Any]] = [{"type": "Prepend", "prepend": _BLANK}] if prefix else []
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": _BLANK})
    undo: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _BLANK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        undo.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = next((tokens[number] for number, kind in enumerate(kinds[: len(tokens)]) if kind == _UNKNOWN), None)
    merges = _merges(tokens, kinds, scores)
    return {
        "normalizer": steps[0] if len(steps) == 1 else {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": undo},
        "model": _bpe(_by_text(tokens), merges, unk_token=unknown, fuse_unk=True, byte_fallback=True),
    }


def _merges(tokens: list[str], kinds: list[int], scores: list[float]) -> list[list[str]]:
    """Every way to make an ordinary token of two, the highest score first."""
    ordinary = {text: number for number, text in enumerate(tokens) if kinds[number] == _NORMAL}
    found: list[tuple[float, int, int, list[str]]] = []
    for text, number in ordinary.items():
        for place in range(1, len(text)):
            left, right = text[:place], text[place:]
            if left in ordinary and right in ordinary:
                found.append((-scores[number], number, ordinary[left], [left, right]))
    found.sort(key=lambda each: each[:3])
    return [pair for *_, pair in found]


def _by_text(tokens: list[str]) -> dict[str, int]:
    vocabulary: dict[str, int] = {}
    for number, text in enumerate(tokens):
        vocabulary.setdefault(text, number)  # of two tokens with one text, only the first can be produced
    return vocabulary


def _bpe(vocabulary: dict[str, int], merges: list[list[str]], **changes: Any) -> dict[str, Any]:
    model: dict[str, Any] = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    return {**model, **changes, "vocab": vocabulary, "merges": merges}


def _flag(file: GgufFile, name: str, default: bool) -> bool:
    """Whether the begin or end token is put around texts."""
    key = f"{_KEY}add_{name}_token"
    return gguf_fields.flag(file.path, key, file.fields.get(key, default))


def _around(file: GgufFile, tokens: list[str], begin: bool, *, byte_level: bool) -> dict[str, Any] | None:
    """What is put before and behind a text."""
    ends = {
        name: _token(file, f"{name}_token_id", len(tokens)) if _flag(file, name, default) else None
        for name, default in (("bos", begin), ("eos", False))
    }
    used = {name: number for name, number in ends.items() if number is not None}
    spans = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    if not used:
        return spans if byte_level else None

    def special(name: str, place: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": tokens[used[name]], "type_id": place}}] if name in used else []

    def text(name: str, place: int) -> list[dict[str, Any]]:
        return [*special("bos", place), {"Sequence": {"id": name, "type_id": place}}, *special("eos", place)]

    put = {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": [*text("A", 0), *text("B", 1)],
        "special_tokens": {
            tokens[number]: {"id": tokens[number], "ids": [number], "tokens": [tokens[number]]}
            for number in used.values()
        },
    }
    return {"type": "Sequence", "processors": [spans, put]} if byte_level else put


def _ordered(body: dict[str, Any]) -> dict[str, Any]:
    order = ("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor")
    return {key: body[key] for key in (*order, "decoder", "model")}


def _config(file: GgufFile, tokens: list[str]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for name, key in _SPECIALS.items():
        number = _token(file, key, len(tokens))
        if number is not None:
            config[name] = tokens[number]
    return {
        **config,
        "clean_up_tokenization_spaces": False,
        # Older and newer transformers know this name, and both read tokenizer.json as it is.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
