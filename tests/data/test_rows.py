"""Sequences of rows: views keep places, mixtures keep shares, fingerprints follow the content alone."""

import datetime
import pickle
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from hasten.data.rows import BrokenRow, ListRows, Mixture, RowSource, Selection, digest_of
from hasten.errors import DataError


def source(name, count):
    return ListRows([{"text": f"{name} {number}"} for number in range(1, count + 1)], f"{name}.jsonl")


class Counted(ListRows):
    """Says how often its files would have been closed, and who read it."""

    def __init__(self, count):
        super().__init__([{"n": number} for number in range(count)])
        self.closed, self.read = 0, []

    def _row(self, index):
        self.read.append(index)
        return super()._row(index)

    def close(self):
        self.closed += 1


def test_a_list_is_a_sequence_of_rows():
    rows = source("a", 3)
    assert (len(rows), rows[0], rows[-1]) == (3, {"text": "a 1"}, {"text": "a 3"})
    assert list(rows) == [rows[0], rows[1], rows[2]]
    assert rows.place(2) == "row 3"
    with pytest.raises(IndexError):
        rows[3]


def test_a_broken_row_is_empty_and_keeps_its_reason():
    row = pickle.loads(pickle.dumps(BrokenRow("duplicate key 'text'")))
    assert (row, row.reason, type(row)) == ({}, "duplicate key 'text'", BrokenRow)


def test_a_selection_keeps_the_places_of_its_source():
    chosen = Selection(source("a", 9), [6, 0])
    assert list(chosen) == [{"text": "a 7"}, {"text": "a 1"}]
    assert (chosen[0], len(chosen), chosen.place(0), chosen.name) == ({"text": "a 7"}, 2, "row 7", "a.jsonl")


def test_a_slice_is_a_selection_and_reads_nothing_else():
    rows = Counted(10)
    part = rows[2:8:3]
    assert isinstance(part, Selection) and rows.read == []
    assert (list(part), part.place(1), rows.read) == ([{"n": 2}, {"n": 5}], "row 6", [2, 5])
    assert list(rows[:3][1:]) == [{"n": 1}, {"n": 2}]
    assert rows[:3][1:].place(0) == "row 2"


@pytest.mark.parametrize(
    "indices", [range(4), [0, 1, 2, 3], [0, 2, 5, 6], [9], [], [3, 0], [2, 2, 4], range(3, -1, -1)]
)
@pytest.mark.parametrize("jumps", [True, False])
def test_a_selection_has_its_rows_in_its_order(indices, jumps, monkeypatch):
    rows = Counted(10)
    monkeypatch.setattr(Counted, "jumps", jumps)
    assert list(Selection(rows, indices)) == [{"n": number} for number in indices]


def test_many_rows_in_order_are_read_in_one_pass(monkeypatch):
    rows = Counted(10)
    assert (list(Selection(rows, [0, 2, 5, 6])), rows.read) == ([{"n": 0}, {"n": 2}, {"n": 5}, {"n": 6}], [])
    assert (list(rows[:4][1:]), rows.read) == ([{"n": 1}, {"n": 2}, {"n": 3}], [])
    few = Selection(rows, [2, 9])
    assert (list(few), rows.read) == ([{"n": 2}, {"n": 9}], [2, 9])
    monkeypatch.setattr(Counted, "jumps", False)  # where one row by its place costs more than all of them
    assert (list(few), rows.read) == ([{"n": 2}, {"n": 9}], [2, 9])
    assert not Selection(few, [0]).jumps and not Mixture([source("a", 1), rows]).jumps
    assert Mixture([source("a", 1), rows], (1, 1)).jumps, "of a weighted mixture every row is read by its place"


def test_without_weights_sources_follow_one_another():
    mixed = Mixture([source("a", 2), source("b", 8)])
    assert [row["text"] for row in mixed] == ["a 1", "a 2", *(f"b {number}" for number in range(1, 9))]
    assert [mixed[index] for index in range(10)] == list(mixed)
    assert (mixed.place(1), mixed.place(8), mixed.name) == ("a.jsonl row 2", "b.jsonl row 7", "a.jsonl, b.jsonl")
    assert mixed[-1] == {"text": "b 8"}


def test_places_of_a_mixture_in_a_mixture_have_one_name():
    mixed = Mixture([source("a", 1), Mixture([source("b", 1), source("c", 2)], name="folder")])
    assert mixed.place(2) == "c.jsonl row 1"
    assert mixed[2:].place(1) == "c.jsonl row 2"


def test_many_names_are_shortened():
    assert Mixture([source(name, 1) for name in "abcde"]).name == "a.jsonl, b.jsonl, c.jsonl and 2 more"


@pytest.mark.parametrize(
    ("sizes", "weights", "counts"),
    [
        ((100, 100), (0.7, 0.3), (100, 43)),
        ((100, 100), (7, 3), (100, 43)),
        ((1000, 300), (0.7, 0.3), (700, 300)),
        ((10, 10, 10), (1, 1, 1), (10, 10, 10)),
        ((5, 1000), (1, 1), (5, 5)),
        ((10, 10_000), (1, 999), (10, 9990)),
        ((7, 1), (1, 1000), (0, 1)),
    ],
)
def test_with_weights_every_source_has_its_share(sizes, weights, counts):
    mixed = Mixture([source(chr(97 + number), size) for number, size in enumerate(sizes)], weights, seed=1)
    texts = [row["text"] for row in mixed]
    assert len(texts) == len(set(texts)) == len(mixed) == sum(counts)
    found = Counter(text[0] for text in texts)
    assert tuple(found[chr(97 + number)] for number in range(len(sizes))) == counts
    named = ", ".join(
        f"{count} of {size} rows of {chr(97 + number)}.jsonl"
        for number, (count, size) in enumerate(zip(counts, sizes, strict=True))
    )
    assert mixed.notes == [f"mixed: {named}"]


def test_every_beginning_of_a_weighted_mixture_has_the_shares():
    texts = [row["text"] for row in Mixture([source("a", 700), source("b", 300)], (0.7, 0.3))]
    for stop in range(1, 1001):
        assert abs(sum(text[0] == "a" for text in texts[:stop]) - 0.7 * stop) <= 1


def test_a_weighted_mixture_is_the_same_for_a_seed_and_another_for_another():
    parts = [source("a", 50), source("b", 50)]
    first, again, other = (Mixture(parts, (2, 1), seed) for seed in (3, 3, 4))
    assert list(first) == list(again) == [first[index] for index in range(len(first))]
    assert first.fingerprint == again.fingerprint
    assert list(first) != list(other)
    assert first.fingerprint != other.fingerprint


def test_places_of_a_weighted_mixture_name_the_row_that_is_there():
    mixed = Mixture([source("a", 20), source("b", 30)], (1, 3), seed=5)
    for index, row in enumerate(mixed):
        name, number = row["text"].split()
        assert mixed.place(index) == f"{name}.jsonl row {number}"


def test_notes_of_the_sources_come_first():
    parts = [ListRows([{"n": 1}], "a", ["a is old"]), ListRows([{"n": 2}], "b")]
    assert Mixture(parts).notes == ["a is old"]
    assert Mixture(parts, (1, 1)).notes == ["a is old", "mixed: 1 of 1 rows of a, 1 of 1 rows of b"]


def test_a_mixture_of_many_files_keeps_few_open():
    parts = [Counted(1) for _ in range(200)]
    mixed = Mixture(parts)
    for _ in range(2):
        for index in range(200):
            assert mixed[index] == {"n": 0}
    assert sum(part.closed for part in parts) == 400 - 64
    mixed.close()
    assert all(part.closed >= 2 for part in parts)


def test_an_iterated_mixture_closes_what_it_has_read():
    parts = [Counted(2), Counted(2)]
    rows = iter(Mixture(parts))
    assert [next(rows) for _ in range(3)] == [{"n": 0}, {"n": 1}, {"n": 0}]
    assert [part.closed for part in parts] == [1, 0]


def test_fingerprints_are_alike_in_every_process():
    program = (
        "import datetime; from hasten.data.rows import ListRows, Mixture;"
        "rows = ListRows([{'a': 'é', 'b': [1, None], 'c': datetime.date(2024, 2, 29), 'd': {'x': b'1'}}]);"
        "print(rows.fingerprint, Mixture([rows, rows], (1, 2)).fingerprint, rows[0:1].fingerprint)"
    )
    runs = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(runs) == 1
    assert len(set(runs.pop().split())) == 3


BASE = [{"a": "x", "b": {"k": 1, "l": [1, 2]}}, {"a": "y", "b": None}]


@pytest.mark.parametrize(
    "changed",
    [
        [BASE[1], BASE[0]],
        BASE[:1],
        [*BASE, {}],
        [{"b": BASE[0]["b"], "a": "x"}, BASE[1]],
        [{"a": "x", "b": {"l": [1, 2], "k": 1}}, BASE[1]],
        [{"a": "x", "b": {"k": 1.0, "l": [1, 2]}}, BASE[1]],
        [{"a": "x", "b": {"k": "1", "l": [1, 2]}}, BASE[1]],
        [{"a": "x", "b": {"k": True, "l": [1, 2]}}, BASE[1]],
        [{"a": b"x", "b": {"k": 1, "l": [1, 2]}}, BASE[1]],
        [{"a": datetime.date(2024, 1, 1), "b": {"k": 1, "l": [1, 2]}}, BASE[1]],
        [{"a": "\ud800", "b": {"k": 1, "l": [1, 2]}}, BASE[1]],
    ],
)
def test_a_fingerprint_changes_with_every_change(changed):
    assert ListRows(changed).fingerprint != ListRows(BASE).fingerprint


def test_a_fingerprint_does_not_depend_on_the_name():
    assert ListRows(BASE, "a").fingerprint == ListRows([dict(row) for row in BASE], "b").fingerprint


def test_fingerprints_of_views_follow_what_they_show():
    rows, other = source("a", 4), source("b", 4)
    prints = [
        rows.fingerprint,
        rows[:2].fingerprint,
        rows[1:3].fingerprint,
        Selection(rows, [1, 0]).fingerprint,
        Mixture([rows, other]).fingerprint,
        Mixture([other, rows]).fingerprint,
        Mixture([rows, other], (1, 1)).fingerprint,
        Mixture([rows, other], (1, 2)).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert Selection(rows, [0, 1]).fingerprint == rows[:2].fingerprint
    assert Mixture([rows, other], (2, 4)).fingerprint == Mixture([rows, other], (1, 2)).fingerprint


@pytest.mark.parametrize("value", [lambda: 0, {1, 2, lambda: 0}, {(1, 2): 3}], ids=["function", "set", "key"])
def test_a_value_without_a_lasting_form_is_named(value):
    with pytest.raises(DataError, match="row 2: a value that cannot be stored .*leave the column out"):
        digest_of([{"a": 1}, {"a": value}])


def test_a_value_that_contains_itself_is_named():
    row = {}
    row["a"] = row
    with pytest.raises(DataError, match="row 1: a value that cannot be stored"):
        digest_of([row])


def test_sources_travel_in_pickles():
    mixed = Mixture([source("a", 5), source("b", 5)], (1, 2), seed=2)
    for original in (source("a", 3), source("a", 3)[1:], mixed):
        copy = pickle.loads(pickle.dumps(original))
        assert isinstance(copy, RowSource)
        assert (list(copy), copy.place(0), copy.fingerprint) == (
            list(original),
            original.place(0),
            original.fingerprint,
        )


def test_threads_read_a_mixture_of_many_files():
    mixed = Mixture([Counted(2) for _ in range(150)])
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(mixed.__getitem__, list(range(300)) * 20))
    assert read == [{"n": index % 2} for index in range(300)] * 20
