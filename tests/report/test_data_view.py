"""The report and its preview: learnt text is marked, and no row's text can do anything to a terminal."""

import io

import numpy as np
import pytest
from rich.console import Console

from hasten.data.documents import DocumentsWriter
from hasten.data.prepare import prepare
from hasten.data.report import DataReport, Found
from hasten.data.settings import DataSettings
from hasten.report.console import make_console
from hasten.report.data_view import Piece, inert, pieces, preview, report_text, show

END = "<|im_end|>"


def prepared(tokenizer, *pairs, **settings):
    rows = [{"question": question, "answer": answer} for question, answer in pairs]
    return prepare(rows, tokenizer, DataSettings(**settings))


def plain(stretch):
    stream = io.StringIO()
    console = make_console(stream)
    console.print(preview(console, stretch), soft_wrap=True)
    return stream.getvalue()


@pytest.mark.parametrize("answer", ["yes", "👍 é", "a\n\nb", "👍"])
def test_pieces_are_the_whole_text_in_order(demo_tokenizer, answer):
    made = prepared(demo_tokenizer, ("hi 👍", answer))
    stretch = pieces(made.documents, 0, demo_tokenizer)
    assert "".join(piece.text for piece in stretch) == demo_tokenizer.decode(made.documents[0]["input_ids"])
    assert [piece.text for piece in stretch if piece.learnt] == [answer + END]
    assert [piece.learnt for piece in stretch] == [False, True, False]


def test_a_character_of_several_tokens_is_never_halved(demo_tokenizer):
    ids = demo_tokenizer("a👍b").input_ids
    writer = DocumentsWriter()
    learnt = np.zeros(len(ids), np.bool_)
    learnt[2:] = True  # in the middle of the thumb
    writer.add(np.array(ids, np.int32), learnt, 0)
    stretch = pieces(writer.finish(), 0, demo_tokenizer)
    assert [piece.text for piece in stretch] == ["a", "👍b"]


def test_learnt_text_is_in_brackets_where_there_is_no_colour():
    assert plain([Piece("say ", False), Piece("yes", True), Piece(" ok", False)]) == "say ⟦yes⟧ ok\n"


def test_learnt_text_is_green_on_a_terminal():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system="standard", no_color=False)
    console.print(preview(console, [Piece("say ", False), Piece("yes", True)]))
    assert "\x1b[32myes" in stream.getvalue() and "⟦" not in stream.getvalue()


def test_long_stretches_lose_their_middle():
    shown = plain([Piece("a" * 500 + "b" * 5000 + "c" * 500, True)])
    assert "[... 5,560 characters ...]" in shown and shown.startswith("⟦aaa") and "ccc⟧" in shown


def test_text_of_rows_is_inert():
    assert inert("a\x1b[31m\x07b\n\tc\x7f") == "a␛[31m␇b\n\tc␡"
    assert inert("x\u202ey\u0085z\u2066") == "x<U+202E>y<U+0085>z<U+2066>"
    assert inert("é👍日本 [bold]") == "é👍日本 [bold]"
    shown = plain([Piece("[red]\x1b]0;title\x07", True)])
    assert "\x1b" not in shown and "[red]" in shown


def test_the_report_has_every_reason_and_marks_the_limit(demo_tokenizer):
    rows = [{"messages": [{"role": f"role {number}", "content": "x"}]} for number in range(12)]
    talk = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo " * 40}]}
    made = prepare([*rows, talk], demo_tokenizer, DataSettings(max_length=64))
    lines = list(report_text(made.report, made.documents, 0, blocks=True))
    assert sum(line.startswith("left out unknown role") for line in lines) == 12
    assert any("█ 1" in line and "<- data.max_length" not in line for line in lines)
    assert any("<- data.max_length 64" in line for line in lines)
    assert any(line.startswith("packing  1 rows of 64 tokens") for line in lines)
    assert not any("█" in line for line in report_text(made.report, made.documents, 0, blocks=False))


def test_show_prints_report_and_documents(demo_tokenizer):
    stream = io.StringIO()
    made = prepared(demo_tokenizer, ("hi", "yo"), ("a", "b"))
    show(make_console(stream), made.report, made.documents, demo_tokenizer, 1, 0)
    text = stream.getvalue()
    assert "format   question-answer" in text and f"⟦yo{END}⟧" in text and "document 2" not in text


def test_hints_follow_reasons(demo_tokenizer):
    report = DataReport(source="x", format="messages", rows=1, max_length=64, too_long_policy="cut")
    report.skipped["the chat template refuses the turns 'user user' (no)"] = Found(1, "row 7")
    lines = list(report_text(report, DocumentsWriter().finish(), 0, blocks=True))
    assert lines[-1].startswith("hint     data.merge_turns") and "row 7" in lines[-2]
