"""Token ids and rendered conversations of two tokenizers."""

from __future__ import annotations

from typing import Any

from hasten.data.conversation import RowProblem
from hasten.data.rendering import Renderer
from hasten.export.verify.checks import Check

PROBES = (
    "Hello, world! It's 3:07 pm, isn't it?", "  two  blanks,   three\t\ttabs\n\n\nlines \r\n end ", "",
    " ", "\n", "1234567890 3.14159 1,000,000 0x1F 2e-5 ½ ٣ ४", "    12   7 x  9", "naïve café Straße Ærøskøbing",
    "Привет, как дела?", "你好，世界。今天天气很好", "こんにちは、元気ですか", "안녕하세요 세계",
    "مرحبا بالعالم", "שלום עולם",
    "नमस्ते दुनिया", "สวัสดีชาวโลก", "γειά σου Κόσμε", "🙂👩‍👩‍👧🇩🇪 👍🏽", "a\u0301 e\u0308 ﬁ ﷺ", "\u00a0\u200b\u3000\ufeff",
    "def f(x):\n    return {'a': [x, 1.5]}  # comment\n", "<b>&amp;</b> https://example.org/?q=a%20b&c=d",
    "{{ x }} {% y %} ▁ Ġ",
    "ALLCAPS camelCase snake_case kebab-case", "don't we'll they've I'M YOU'RE", "x" * 100,
)  # fmt: skip
"""Scripts, digits, blanks and marks that ways of cutting text differ in."""
_CONVERSATIONS = (
    ({"role": "user", "content": "What is 2 + 2?"},),
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": " two  blanks "}),
    (
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b\nc"},
        {"role": "user", "content": "{{ d }} 日本語"},
    ),
)


def compare_tokens(target: str, meant: Any, found: Any) -> Check:
    """Token ids of texts, with and without control tokens around and in them.

    Args:
        target: for the check's line.
        meant: a transformers tokenizer.
        found: the one that is read back.
    """
    texts = [*PROBES, *(f"a{token}b {token} c" for token in _control(meant))]
    for text in texts:
        for special in (True, False):
            ids, other = (part(text, add_special_tokens=special)["input_ids"] for part in (meant, found))
            if ids != other:
                place = next(
                    (n for n, pair in enumerate(zip(ids, other, strict=False)) if pair[0] != pair[1]), len(ids)
                )
                few = slice(place, place + 4)
                said = f"{text[:60]!r} becomes {other[few]} at token {place} instead of {ids[few]}"
                return Check(target, "tokens", "wrong", said)
    ends = {name: getattr(meant, name) for name in ("bos_token_id", "eos_token_id")}
    for name, value in ends.items():
        if value is not None and getattr(found, name) != value:
            return Check(target, "tokens", "wrong", f"{name} is {getattr(found, name)} instead of {value}")
    return Check(target, "tokens", "equal", f"{len(texts)} texts, {len(meant)} tokens")


def compare_templates(target: str, meant: Any, found: Any) -> Check:
    """Rendered conversations; arguments as above."""
    if meant.chat_template is None:
        state, said = ("equal", "neither has one") if found.chat_template is None else ("wrong", "it has one")
        return Check(target, "template", state, said)  # type: ignore[arg-type]
    if found.chat_template is None:
        return Check(target, "template", "wrong", "it has none")
    if meant.chat_template == found.chat_template:
        return Check(target, "template", "equal", f"{len(meant.chat_template)} characters")
    try:
        for number, talk in enumerate(_CONVERSATIONS):
            one, other = (Renderer(each).render(list(talk)) for each in (meant, found))
            if one != other:
                return Check(target, "template", "wrong", f"conversation {number} is rendered {other[:80]!r}")
    except RowProblem as cause:  # a template that refuses one of the conversations
        return Check(target, "template", "wrong", f"the texts differ, and it cannot be rendered ({cause})"[:200])
    return Check(target, "template", "within", "other text, same conversations")


def _control(tokenizer: Any) -> list[str]:
    return sorted({str(token) for token in tokenizer.added_tokens_decoder.values()})[:40]
