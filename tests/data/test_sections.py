"""Very long texts are tokenized in sections, and nobody can tell from the documents."""

import copy
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.data.conversation import Conversation, PlainText
from hasten.data.encoding import RowEncoder
from hasten.data.prepare import prepare
from hasten.data.sections import joined, sections
from hasten.data.settings import DataSettings
from hasten.data.templates import ChatEncoder
from support import tiny

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
LINES = "".join(
    f"Line {number}, with words.\n  Indented, don't!\n\n\nAn {number * 7919} \u00e9t\u00e9.\r\n" for number in range(99)
)


def in_sections(content, encoder, longest):
    parts = [part for part, _ in sections(content, longest)]
    made = RowEncoder(encoder, "assistant", 64, clip=False).encode(parts)
    return joined(made, encoder.tokenizer.bos_token_id if encoder.wants_bos else None), len(parts)


def assert_alike(content, tokenizer, longest):
    encoder = ChatEncoder(tokenizer)
    (whole,) = RowEncoder(encoder, "assistant", 64, clip=False).encode([content])
    made, parts = in_sections(content, encoder, longest)
    assert parts > 1
    assert made.ids.tolist() == whole.ids.tolist() and made.learnt.tolist() == whole.learnt.tolist()
    assert (made.ended, made.spelled, made.straddles) == (whole.ended, whole.spelled, whole.straddles)


@given(st.text("ab \n", max_size=60), st.integers(1, 20))
def test_sections_are_the_text(text, longest):
    parts = list(sections(PlainText("p", text), longest))
    assert "".join(part.completion for part, _ in parts) == text
    assert all(0 < len(part.completion) <= longest for part, _ in parts) or not text
    assert [more for _, more in parts] == [True] * (len(parts) - 1) + [False]
    assert [part.prompt for part, _ in parts] == ["p"] + [""] * (len(parts) - 1)


def test_conversations_stay_whole():
    talk = Conversation([{"role": "user", "content": "a" * 99}, {"role": "assistant", "content": "b"}])
    assert list(sections(talk, 10)) == [(talk, False)]


@pytest.mark.parametrize("longest", [200, 999])
@pytest.mark.parametrize("prompt", ["", "Once upon"])
@pytest.mark.parametrize("end", ["", "<|im_end|>"])
def test_the_tokens_are_those_of_the_whole_text(demo_tokenizer, longest, prompt, end):
    assert_alike(PlainText(prompt, LINES + end), demo_tokenizer, longest)


def test_one_begin_token(demo_tokenizer):
    assert_alike(PlainText("", LINES), tiny.with_bos(copy.deepcopy(demo_tokenizer)), 500)


def test_spelled_control_tokens(demo_tokenizer):
    assert_alike(PlainText("", LINES + "<|im_start|>" + LINES), demo_tokenizer, 500)


def test_real_texts(demo_tokenizer):
    if not SHARED.is_dir():
        pytest.skip("the real rows are not here")
    with (SHARED / "c4_demo.jsonl").open(encoding="utf-8") as file:
        text = "\n".join(json.loads(line)["text"] for line in file)
    assert_alike(PlainText("", text), demo_tokenizer, 20_000)


def test_long_texts_are_split_into_the_same_documents(demo_tokenizer, monkeypatch):
    rows = [{"text": "short"}, {"text": LINES}, {"text": LINES + "\ud800"}, {"text": LINES[::-1]}, {"text": "last"}]
    settings = DataSettings(max_length=64, too_long="split")
    whole = prepare(rows, demo_tokenizer, settings)
    monkeypatch.setattr("hasten.data.sections.sections.__defaults__", (500,))
    monkeypatch.setattr("hasten.data.prepare._MOST_CHARACTERS", 900)
    made = prepare(rows, demo_tokenizer, settings)
    assert made.documents.rows.tolist() == whole.documents.rows.tolist()
    assert made.documents.ids.tolist() == whole.documents.ids.tolist()
    assert made.documents.learnt.tolist() == whole.documents.learnt.tolist()
    assert made.report == whole.report and made.report.kept == 4
