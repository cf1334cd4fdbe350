"""Best-fit rows: every document once, none divided, hardly any room left over."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.data.bins import best_fit, efficiency, packs
from hasten.errors import ConfigError, DataError

ALPACA = Path(__file__).parents[2].parent / "shared" / "data" / "alpaca_en_demo.json"
CAPACITY = 24
LENGTHS = st.lists(st.integers(1, CAPACITY), max_size=60)


def one_by_one(lengths, capacity):
    """Best-fit decreasing as it is defined."""
    rows, rooms = [], []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        fitting = [row for row, room in enumerate(rooms) if room >= lengths[index]]
        if fitting:
            row = min(fitting, key=lambda row: rooms[row])
        else:
            row = len(rows)
            rows.append([])
            rooms.append(capacity)
        rows[row].append(index)
        rooms[row] -= lengths[index]
    return rows


def test_as_drawn_in_the_docstring():
    lengths = [5, 4, 3, 3, 2, 1]
    assert [[lengths[index] for index in row] for row in best_fit(lengths, 6)] == [[5, 1], [4, 2], [3, 3]]


@given(LENGTHS)
def test_every_document_is_in_one_row_that_holds_it(lengths):
    rows = best_fit(lengths, CAPACITY)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in row) <= CAPACITY for row in rows)


@given(LENGTHS)
def test_placing_equal_lengths_together_changes_nothing(lengths):
    # Which of two rows with the same room is taken is free; how full the rows become is not.
    grouped, single = (
        sorted(sum(lengths[index] for index in row) for row in rows)
        for rows in (best_fit(lengths, CAPACITY), one_by_one(lengths, CAPACITY))
    )
    assert grouped == single


@given(LENGTHS)
def test_the_same_lengths_give_the_same_rows_from_lists_and_arrays(lengths):
    assert best_fit(lengths, CAPACITY) == best_fit(np.array(lengths, dtype=np.int32), CAPACITY)


@given(st.lists(st.sets(st.integers(1, CAPACITY - 1), max_size=4), min_size=1, max_size=12))
def test_never_above_the_known_bound(cuts):
    # Full rows cut into pieces: the optimum is known. The bound is Johnson's, 11/9 OPT + 6/9 (Dosa 2007).
    pieces = [b - a for places in cuts for a, b in zip([0, *sorted(places)], [*sorted(places), CAPACITY], strict=True)]
    assert len(cuts) <= len(best_fit(pieces, CAPACITY)) <= len(cuts) * 11 / 9 + 6 / 9


@pytest.mark.parametrize(("lengths", "value"), [([3, 25, 30], "25 tokens, as one of 2 of 3"), ([4, 0], "0 tokens")])
def test_documents_that_do_not_fit_are_refused(lengths, value):
    with pytest.raises(DataError) as caught:
        best_fit(lengths, CAPACITY)
    assert "document 1" in str(caught.value) and value in str(caught.value)
    assert "1 to 24 tokens" in str(caught.value) and "cut or split" in str(caught.value)


def test_no_documents_no_rows():
    assert best_fit([], 8) == []
    assert efficiency([], [], 8) == 1.0


def test_efficiency_is_the_share_of_room_that_is_used():
    assert efficiency([[0, 1], [2]], [3, 5, 4], 8) == 12 / 16


# 13.5 of the pains.
def test_packs_of_documents():
    documents = [{"input_ids": list(range(10)), "labels": list(range(10))}] * 10
    rows = packs(documents, 40)
    assert sorted(map(len, rows)) == [2, 4, 4]
    with pytest.raises(ConfigError, match=r"data.pack_length: 9, but document 0 has 10 tokens.*Raise it to 10.*"):
        packs(documents, 9)
    assert packs([], 9) == []


@pytest.mark.slow
@pytest.mark.parametrize("capacity", [2048, 131072])
def test_a_million_documents_take_seconds(capacity):
    lengths = np.random.default_rng(0).integers(1, capacity + 1, 1_000_000)
    started = time.process_time()
    rows = best_fit(lengths, capacity)
    assert time.process_time() - started < 10
    assert efficiency(rows, lengths, capacity) > 0.99


@pytest.mark.skipif(not ALPACA.is_file(), reason="the rows that are tested with are not on this machine")
def test_real_rows_fill_their_training_rows(demo_tokenizer):
    rows = json.loads(ALPACA.read_text(encoding="utf-8"))
    texts = [" ".join((row["instruction"], row["input"], row["output"])) for row in rows]
    lengths = np.tile([min(len(ids), 2048) for ids in demo_tokenizer(texts).input_ids], 10)
    packed = best_fit(lengths, 2048)
    assert efficiency(packed, lengths, 2048) >= 0.97
    assert efficiency([[index] for index in range(len(lengths))], lengths, 2048) < 0.15
