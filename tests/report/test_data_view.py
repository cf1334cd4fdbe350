"""The report and its preview: learnt text is marked, and no row's text can do anything to a terminal."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from hasten.data.documents import DocumentsWriter
from hasten.data.prepare import prepare
from hasten.data.report import DataReport, Found
from hasten.data.rows import ListRows
from hasten.data.settings import DataSettings
from hasten.report import data_view
from hasten.report.console import make_console
from hasten.report.data_view import Piece, inert, packing, pieces, preview, report_text, show, show_unusable
from support import tiny

END = "<|im_end|>"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def prepared(tokenizer, *pairs, **settings):
    rows = [{"question": question, "answer": answer} for question, answer in pairs]
    return prepare(rows, tokenizer, DataSettings(**settings))


def documents_of(ids, learnt):
    writer = DocumentsWriter()
    writer.add(np.array(ids, np.int32), np.array(learnt, np.bool_), 0)
    return writer.finish()


def plain(stretches):
    stream = io.StringIO()
    make_console(stream).print(preview(make_console(stream), stretches), soft_wrap=True)
    return stream.getvalue()


def lines_of(made, pack_length=0, **arguments):
    return list(report_text(made.report, made.documents, pack_length, **{"blocks": True, **arguments}))


@pytest.fixture(scope="module")
def byte_fallback():
    """A tokenizer as SentencePiece models have it: blanks are letters, unknown characters are bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    letters = ["<unk>", "\u2581", *"abc", "\u2581a", "\ufffd", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [("\u2581", "a")]
    backend = Tokenizer(models.BPE({one: i for i, one in enumerate(letters)}, merges, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


# -- pieces ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["yes", "👍 é", "a\n\nb", "👍", "\ufffd"])
def test_pieces_are_the_whole_text_in_order(demo_tokenizer, answer):
    made = prepared(demo_tokenizer, ("hi 👍", answer))
    stretches = pieces(made.documents, 0, demo_tokenizer)
    assert "".join(piece.text for piece in stretches) == demo_tokenizer.decode(made.documents[0]["input_ids"])
    assert [piece.text for piece in stretches if piece.learnt] == [answer + END]
    assert [piece.learnt for piece in stretches] == [False, True, False]


@given(text=st.text("ab 👍é日\ufffd", min_size=1, max_size=12), flags=st.lists(st.booleans(), min_size=48, max_size=48))
@settings(deadline=None, max_examples=150)
def test_borders_anywhere_lose_and_double_nothing(demo_tokenizer, byte_fallback, text, flags):
    for tokenizer in (demo_tokenizer, byte_fallback):
        ids = tokenizer(text).input_ids[: len(flags)]
        stretches = pieces(documents_of(ids, flags[: len(ids)]), 0, tokenizer)
        assert "".join(piece.text for piece in stretches) == tokenizer.decode(ids)


def test_a_character_of_several_tokens_is_never_halved(demo_tokenizer, byte_fallback):
    for tokenizer in (demo_tokenizer, byte_fallback):
        ids = tokenizer("a👍b").input_ids
        assert len(ids) >= 5
        stretches = pieces(documents_of(ids, [False] * 2 + [True] * (len(ids) - 2)), 0, tokenizer)
        assert [piece.text for piece in stretches] == ["a", "👍b"], "the border was in the middle of the thumb"


def test_replacement_characters_of_a_row_stay_where_they_are(demo_tokenizer):
    before, after = demo_tokenizer("a\ufffd").input_ids, demo_tokenizer("👍").input_ids
    stretches = pieces(documents_of([*before, *after], [False] * len(before) + [True] * len(after)), 0, demo_tokenizer)
    assert [piece.text for piece in stretches] == ["a\ufffd", "👍"]


def test_a_document_that_ends_within_a_character_says_so(demo_tokenizer):
    ids = demo_tokenizer("a👍").input_ids[:-1]
    (piece,) = pieces(documents_of(ids, [True] * len(ids)), 0, demo_tokenizer)
    assert piece.text == "a\ufffd"


def test_long_stretches_lose_their_middle_but_not_their_borders(demo_tokenizer):
    words = " ".join(f"w{number}" for number in range(400))
    made = prepared(demo_tokenizer, ("first " + words + " last", "begin " + words + " done"), max_length=8192)
    whole = pieces(made.documents, 0, demo_tokenizer)
    short = pieces(made.documents, 0, demo_tokenizer, shorten=True)
    assert [piece.learnt for piece in short] == [piece.learnt for piece in whole]
    assert short[1].text.startswith("begin w0 w1") and short[1].text.endswith("w399 done" + END)
    learnt, shown = int(made.documents.supervised[0]), 64 + 36
    assert f" [... {learnt - shown:,} tokens ...] " in short[1].text and learnt > 1000
    assert short[0].text.endswith(whole[0].text[-40:]) and len(short[0].text) < 1000
    assert "tokens ..." not in "".join(piece.text for piece in whole)


def test_a_document_of_very_many_stretches_loses_its_middle(demo_tokenizer):
    ids = demo_tokenizer("a b c d e f g h i j " * 10).input_ids[:100]
    stretches = pieces(documents_of(ids, [index % 2 == 1 for index in range(100)]), 0, demo_tokenizer, shorten=True)
    assert len(stretches) == 16 + 1 + 8
    assert stretches[16] == Piece("\n[... 76 stretches of 76 tokens ...]\n", False)


def test_only_what_is_shown_is_decoded(demo_tokenizer):
    class Counting:
        decoded = 0

        def decode(self, ids, **how):
            self.decoded += len(ids)
            return demo_tokenizer.decode(ids, **how)

    ids, counting = demo_tokenizer("word " * 50_000).input_ids, Counting()
    half = len(ids) // 2
    pieces(documents_of(ids, [index >= half for index in range(len(ids))]), 0, counting, shorten=True)
    assert counting.decoded < 1000


# -- preview -----------------------------------------------------------------------------------------------------------


def test_learnt_text_is_in_brackets_where_there_is_no_colour():
    assert plain([Piece("say ", False), Piece("yes", True), Piece(" ok", False)]) == "say ⟦yes⟧ ok\n"


def test_brackets_of_a_row_are_not_taken_for_ours():
    assert plain([Piece("a⟦b⟧", False), Piece("c", True)]) == "a<U+27E6>b<U+27E7>⟦c⟧\n"


def test_a_stream_without_such_brackets_gets_others():
    raw = io.BytesIO()
    console = make_console(io.TextIOWrapper(raw, encoding="cp1252", write_through=True))
    console.print(preview(console, [Piece("say é ", False), Piece("yes", True)]))
    assert raw.getvalue().decode("cp1252").strip() == "say é {+yes+}"


def test_learnt_text_is_green_on_a_terminal(monkeypatch):
    monkeypatch.setattr(Console, "_environ", {"TERM": "xterm"})
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    console = make_console(stream)
    console.print(preview(console, [Piece("say ", False), Piece("yes", True)]))
    assert "\x1b[2msay" in stream.getvalue() and "\x1b[32myes" in stream.getvalue() and "⟦" not in stream.getvalue()


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_without_colour_gets_brackets(name, value, monkeypatch):
    monkeypatch.setattr(Console, "_environ", {"TERM": "xterm", name: value})  # rich reads what it saw when imported
    stream = Terminal()
    console = make_console(stream)
    console.print(preview(console, [Piece("say ", False), Piece("yes", True)]))
    assert "say ⟦yes⟧" in stream.getvalue() and "\x1b[32m" not in stream.getvalue()


def test_text_of_rows_is_inert():
    assert inert("a\x1b[31m\x07b\n\tc\x7f\r") == "a␛[31m␇b\n\tc␡␍"
    assert inert("x\u202ey\u0085z\u2066\u009b") == "x<U+202E>y<U+0085>z<U+2066><U+009B>"
    assert inert("é👍日本 [bold] 👩\u200d💻") == "é👍日本 [bold] 👩\u200d💻"
    for coloured in (True, False):
        stream = io.StringIO()
        system = "standard" if coloured else None
        console = Console(file=stream, force_terminal=coloured, color_system=system, no_color=False)
        console.print(preview(console, [Piece("[red]\x1b]0;title\x07", True)]))
        assert "␛]0;title␇" in stream.getvalue() and "[red]" in stream.getvalue()
        assert "\x1b]" not in stream.getvalue() and "\x07" not in stream.getvalue()


# -- report ------------------------------------------------------------------------------------------------------------


def test_the_report_has_every_reason_and_marks_the_limit(demo_tokenizer):
    rows = [{"messages": [{"role": f"role {number}", "content": "x"}]} for number in range(12)]
    talk = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo " * 40}]}
    made = prepare([*rows, talk], demo_tokenizer, DataSettings(max_length=64))
    lines = lines_of(made)
    assert "rows     1 of 13 used, 12 left out, 1 documents" in lines
    for number in range(12):
        assert sum(f"'role {number}'" in line and f"1 (row {number + 1})" in line for line in lines) == 1
    assert any("█ 1" in line and "<- max_length" not in line for line in lines)
    assert any("<- max_length 64" in line for line in lines)
    assert not any("█" in line for line in lines_of(made, blocks=False))


def test_a_limit_above_all_rows_is_told(demo_tokenizer):
    assert "  max_length 8,192 is above all of them" in lines_of(
        prepared(demo_tokenizer, ("hi", "yo"), max_length=8192)
    )


def test_limits_that_would_help_are_named(demo_tokenizer):
    pairs = [("hi", "yo " * count) for count in (10, 80, 80, 150)]
    made = prepared(demo_tokenizer, *pairs, max_length=100)
    lines = lines_of(made)
    longest = int(made.report.lengths["longest"])
    lost = made.report.lost_tokens
    assert (
        f"too long rows of more than 100 tokens, cut at the end: 3 (first: row 2); {lost:,} tokens are not trained on"
        in lines
    )
    assert f"too long with data.max_length 256: 1; with {longest}: none" in lines
    assert made.documents.lengths.sum() + lost == sum(
        prepared(demo_tokenizer, *pairs, max_length=longest).documents.lengths
    )


def test_a_row_that_was_measured_in_part_promises_nothing(demo_tokenizer):
    lines = lines_of(prepared(demo_tokenizer, ("hi", "yo " * 20), ("hi", "yo " * 400_000), max_length=128))
    (limits,) = [line for line in lines if line.startswith("too long with")]
    assert "at least " in limits and limits.endswith(": none")


@pytest.mark.parametrize("policy", ["drop", "split"])
def test_other_policies_are_told(policy, demo_tokenizer):
    pairs = [("hi", "yo"), ("hi " * 200, "yo")]
    (line, *_) = [
        line for line in lines_of(prepared(demo_tokenizer, *pairs, max_length=64, too_long=policy)) if "too" in line
    ]
    assert {"drop": "left out", "split": "split"}[policy] + ": 1 (row 2)" in line


def test_figures_have_separators():
    report = DataReport(source="x", format="text", rows=52_002, max_length=2048, too_long_policy="cut", kept=50_000)
    report.documents, report.real_tokens, report.supervised_tokens = 50_000, 9_000_000, 4_500_000
    report.skipped["no text"] = Found(2_002, "row 1,000")
    report.measure(np.array([1_500, 2_500, 1_000_000]))
    text = "\n".join(report_text(report, DocumentsWriter().finish(), 0, blocks=True))
    for part in (
        "50,000 of 52,002 used, 2,002 left out",
        "9,000,000, 4,500,000 of them",
        "longest 1,000,000",
        "2,002 (first",
    ):
        assert part in text


def test_packing_of_ten_documents_of_ten_tokens():
    writer = DocumentsWriter()
    for row in range(10):
        writer.add(np.arange(10, dtype=np.int32), np.array([False] + [True] * 9), row)
    documents = writer.finish()
    made = packing(documents, 40)
    assert made and (made.rows, made.documents_most, made.full) == (3, 4, 100 / 120)
    report = DataReport(source="x", format="text", rows=10, max_length=40, too_long_policy="cut")
    lines = list(report_text(report, documents, 40, blocks=True))
    assert "packing  3 rows of 40 tokens, 83.3% full, up to 4 documents a row (mean 3.3)" in lines
    lines = list(report_text(report, documents, 0, blocks=True))
    assert any(line.startswith("packing  with data.pack_length 40: 3 rows") for line in lines)
    assert packing(documents, 9) is None
    (refused,) = [line for line in report_text(report, documents, 9, blocks=True) if line.startswith("packing")]
    assert "refuse" in refused and "10 tokens" in refused and "set data.max_length to 9" in refused
    assert packing(DocumentsWriter().finish(), 40) is None


def test_hints_follow_reasons():
    report = DataReport(source="x", format="messages", rows=1, max_length=64, too_long_policy="cut")
    report.skipped["the chat template refuses the turns 'user user' (no)"] = Found(1, "row 7")
    lines = list(report_text(report, DocumentsWriter().finish(), 0, blocks=True))
    assert lines[-1].startswith("hint     data.merge_turns") and "row 7" in lines[-2]


def test_show_prints_report_and_documents_with_their_rows(demo_tokenizer):
    stream = io.StringIO()
    source = ListRows([{"question": "hi", "answer": ""}, {"question": "hi", "answer": "yo"}] * 2, "x", ["said of x"])
    made = prepare(source, demo_tokenizer, DataSettings())
    show(make_console(stream), made, source, demo_tokenizer, rows=1, pack_length=0)
    text = stream.getvalue()
    assert "format   question-answer" in text and "note     said of x" in text
    assert "-- document 1 (row 2): " in text and f"⟦yo{END}⟧" in text and "document 2" not in text


def test_reasons_names_and_notes_are_inert_and_one_line_each(demo_tokenizer):
    stream = io.StringIO()
    talk = [{"messages": [{"role": "a\nleft out\x1b[2J", "content": "x"}]}]
    good = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}]
    source = ListRows(talk + good, "x\nleft out of the name", ["a\nleft out of a note\x07"])
    made = prepare(source, demo_tokenizer, DataSettings())
    show(make_console(stream), made, source, demo_tokenizer, rows=0, pack_length=0)
    assert not set(stream.getvalue()) & {"\x1b", "\x07"}
    assert sum(line.startswith("left out") for line in stream.getvalue().splitlines()) == 1


def test_sixty_columns_are_enough(demo_tokenizer, monkeypatch):
    monkeypatch.setattr(Console, "_environ", {"TERM": "xterm", "COLUMNS": "60"})
    source = ListRows([{"question": "hi", "answer": "yo " * count} for count in (1, 5, 40, 400, 5000)] * 30)
    made = prepare(source, demo_tokenizer, DataSettings(max_length=256))
    terminal, log = Terminal(), io.StringIO()
    for stream in (terminal, log):
        show(make_console(stream), made, source, demo_tokenizer, rows=0, pack_length=0)
    shown = terminal.getvalue().splitlines()
    assert max(len(line) for line in shown) <= 60 and any("<- max_length 256" in line for line in shown)
    assert any(line.startswith("         ") for line in shown), "broken lines are indented"
    assert max(len(line) for line in log.getvalue().splitlines()) > 100, "a log has them whole"


# -- rows of which none can be used ------------------------------------------------------------------------------------


def unusable(tokenizer, rows, **values):
    stream = io.StringIO()
    show_unusable(make_console(stream), ListRows(rows), tokenizer, DataSettings(**values))
    return stream.getvalue()


def test_an_answer_behind_the_limit_is_shown_with_the_limit(demo_tokenizer):
    text = unusable(demo_tokenizer, [{"question": "word " * 60, "answer": "yes"}], max_length=32)
    assert "-- row 1: " in text and "2 learnt" in text
    assert text.index("max_length 32 ends here") < text.index(f"⟦yes{END}⟧")


def test_a_row_in_which_nothing_is_learnt_has_no_brackets(demo_tokenizer):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo", "train": False}]
    text = unusable(demo_tokenizer, [{"messages": []}, {"messages": turns}])
    assert "-- row 2: " in text and "0 learnt" in text
    assert f"yo{END}" in text and "⟦" not in text and "ends here" not in text


def test_a_row_that_cannot_be_rendered_is_not_shown(demo_tokenizer):
    assert unusable(demo_tokenizer, [{"messages": [{"role": "narrator", "content": "x"}]}]) == ""
    assert unusable(demo_tokenizer, [{"column": "x"}]) == ""


def test_rows_of_a_tiny_vocabulary_are_shown_too():
    made = prepared(tiny.tokenizer(), ("say red", "the red dog"))
    stretches = pieces(made.documents, 0, tiny.tokenizer())
    assert [piece.text for piece in stretches if piece.learnt] == ["the red dog" + END]
    assert data_view.OPEN + "the red dog" in plain(stretches)
