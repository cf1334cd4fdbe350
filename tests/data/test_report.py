"""What the report says, and only what happened."""

import json

import numpy as np

from hasten.data.report import DataReport, Found


def report(**values):
    return DataReport(
        **{"source": "rows", "format": "messages", "rows": 10, "max_length": 64, "too_long_policy": "cut", **values}
    )


def test_nothing_happened():
    assert report(kept=10, real_tokens=200, supervised_tokens=50).lines() == [
        "10 of 10 rows (messages), 200 tokens, 50 of them learnt (25%)"
    ]


def test_the_first_row_is_named():
    made = report()
    for row in (3, 1):  # rows that cannot be read are known before those that are tokenized
        made.too_long.add(row)
    made.skipped["no messages"] = Found()
    made.skipped["no messages"].add(4)
    made.place("b.jsonl", lambda row: f"row {row + 1}")
    assert str(made.too_long) == "2 (first: row 2)" and str(made.skipped["no messages"]) == "1 (row 5)"
    assert made.source == "b.jsonl" and made.spelled == Found()


def test_rows_that_are_left_out_for_their_length_are_counted_once():
    made = report(
        too_long_policy="drop", too_long=Found(3, "row 1"), skipped={"longer than 64 tokens": Found(3, "row 1")}
    )
    assert made.lines()[1:] == ["left out, longer than 64 tokens: 3 (first: row 1)"]


def test_tokens_of_clipped_rows_are_counted_in_part():
    made = report(too_long=Found(3, "row 1"), clipped=1, lost_tokens=70)
    assert made.length_lines() == [
        "longer than 64 tokens and cut at the end: 3 (first: row 1); at least 70 tokens are not trained on"
    ]


def test_every_line_that_there_is():
    lines = report(
        kept=2,
        too_long=Found(3, "row 1"),
        lost_tokens=70,
        unlearnt_pieces=2,
        duplicates=4,
        spelled=Found(1, "row 2"),
        straddling=Found(1, "row 5"),
        ended=6,
        calls_as_text=Found(1, "row 6"),
        tools_as_text=Found(1, "row 7"),
        missing_turns=Found(1, "row 8"),
        unseen="<think>",
        inserted="You are helpful.",
        inserted_rows=9,
        day="2026-01-31",
        skipped={"the chat template refuses the turns 'user user' (no)": Found(1, "row 7")},
        notes=["only the better answer is learnt"],
    ).lines()
    text = "\n".join(lines)
    for part in (
        "longer than 64 tokens and cut at the end: 3 (first: row 1); 70 tokens are not trained on",
        "nothing is learnt, left out: 2",
        "the same as an earlier one: 4",
        "kept as text: 1 (row 2)",
        "end of what is only read: 1 (row 5)",
        "end token added to the text: 6",
        "written as text: 1 (row 6)",
        "listed as text: 1 (row 7)",
        "turns, or words beside calls, that the template leaves out: 1 (row 8)",
        "answers are asked for with '<think>', which no row has",
        "text of its own in 9 rows: 'You are helpful.'",
        "prints the date: 2026-01-31 in all rows",
        "left out, the chat template refuses the turns 'user user' (no): 1 (row 7)",
        "data.merge_turns joins neighbouring turns of one role, data.fold_system puts the system turn",
        "only the better answer is learnt",
    ):
        assert part in text
    assert len(lines) == 16


def test_lengths_and_histogram():
    made = report()
    made.measure(np.array([3, 8, 9, 16, 17, 100], np.int64))
    assert made.lengths == {"shortest": 3, "mean": 25.5, "median": 12, "p95": 79, "longest": 100}
    assert made.histogram == [(8, 2), (16, 2), (32, 1), (64, 0), (128, 1)]
    empty = report()
    empty.measure(np.array([], np.int64))
    assert empty.histogram == [] and empty.lengths == {}


def test_it_survives_being_written():
    made = report(kept=1, spelled=Found(1, "row 2"), skipped={"no messages": Found(2, "row 1")}, notes=["x"])
    made.measure(np.array([3, 8], np.int64))
    assert DataReport.from_dict(json.loads(json.dumps(made.as_dict()))) == made
