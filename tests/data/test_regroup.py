"""The cut of a step: every document once, within the budget, as few micro-batches as can be, even on all ranks."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.data import regroup as module
from hasten.data.bins import best_fit
from hasten.data.regroup import in_order, regroup

BUDGET = 12
LENGTHS = st.lists(st.integers(1, 2 * BUDGET), min_size=1, max_size=24)
RANKS = st.integers(1, 4)


def fewest(lengths, budget):
    """The optimum by trying everything: the first document with every set that fits beside it."""
    if not lengths:
        return 0
    first, *rest = lengths
    best = len(lengths)
    for size in range(len(rest) + 1):
        for beside in combinations(range(len(rest)), size):
            if first + sum(rest[place] for place in beside) <= budget or not beside:
                others = [length for place, length in enumerate(rest) if place not in beside]
                best = min(best, 1 + fewest(others, budget))
    return best


def check_cut(cut, lengths, ranks):
    assert len(cut) == ranks
    assert len({len(groups) for groups in cut}) == 1, "every rank runs the same number"
    assert sorted(place for groups in cut for group in groups for place in group) == list(range(len(lengths)))
    for groups in cut:
        loads = [sum(lengths[place] for place in group) for group in groups]
        assert loads == sorted(loads, reverse=True)
        for group, load in zip(groups, loads, strict=True):
            assert load <= BUDGET or len(group) == 1
            assert group == sorted(group)


@given(LENGTHS, RANKS)
def test_every_document_once_within_the_budget_and_equally_many_on_each_rank(lengths, ranks):
    check_cut(regroup(lengths, budget=BUDGET, ranks=ranks), lengths, ranks)


@given(LENGTHS, RANKS)
def test_the_same_step_is_cut_the_same_way_everywhere(lengths, ranks):
    cut = regroup(lengths, budget=BUDGET, ranks=ranks)
    assert regroup(np.array(lengths, dtype=np.int32), budget=BUDGET, ranks=ranks) == cut


@given(st.lists(st.integers(1, BUDGET + 3), min_size=1, max_size=7), RANKS)
def test_as_few_as_trying_everything_finds(lengths, ranks):
    cut = regroup(lengths, budget=BUDGET, ranks=ranks)
    assert len(cut[0]) == -(-fewest(lengths, BUDGET) // ranks)


@given(LENGTHS)
def test_never_more_than_best_fit_and_never_below_what_the_tokens_need(lengths):
    alone = [length for length in lengths if length > BUDGET]
    rest = [length for length in lengths if length <= BUDGET]
    found = len(regroup(lengths, budget=BUDGET)[0])
    assert len(alone) - (-sum(rest) // BUDGET) <= found <= len(alone) + len(best_fit(rest, BUDGET))


def test_the_search_finds_what_best_fit_misses(monkeypatch):
    lengths = [5, 4, 4, 3, 2, 2]
    assert len(best_fit(lengths, 10)) == 3
    assert regroup(lengths, budget=10) == [[[0, 3, 4], [1, 2, 5]]]
    monkeypatch.setattr(module, "_MOST_TRIES", 3)
    assert len(regroup(lengths, budget=10)[0]) == 3, "it gives up in time"


def test_the_search_gives_up_on_many_documents():
    lengths = [5, 4, 4, 3, 2, 2] * 3
    assert len(regroup(lengths, budget=10)[0]) == len(best_fit(lengths, 10))


@given(LENGTHS, RANKS)
def test_ranks_differ_by_less_than_a_micro_batch(lengths, ranks):
    cut = regroup(lengths, budget=BUDGET, ranks=ranks)
    loads = [sum(lengths[place] for group in groups for place in group) for groups in cut]
    assert max(loads) - min(loads) <= max(BUDGET, *lengths)


@given(st.lists(st.integers(1, BUDGET), min_size=1, max_size=24), RANKS)
def test_where_the_budget_does_not_bind_ranks_differ_by_one_document_at_most(lengths, ranks):
    cut = regroup(lengths, budget=sum(lengths), ranks=ranks)
    loads = [sum(lengths[place] for group in groups for place in group) for groups in cut]
    assert [len(groups) for groups in cut] == [1] * ranks
    assert max(loads) - min(loads) <= max(lengths)


def test_what_one_rank_could_run_alone_is_shared():
    assert regroup([4, 4, 4, 4], budget=16, ranks=2) == [[[0, 2]], [[1, 3]]]


def test_micro_batches_are_of_even_load():
    lengths = [700, 650, 400, 350, 300, 300, 250, 150]
    assert [sum(lengths[row] for row in group) for group in best_fit(lengths, 2048)] == [2000, 1100]
    assert [sum(lengths[place] for place in group) for group in regroup(lengths, budget=2048)[0]] == [1600, 1500]


def test_a_rank_without_documents_runs_empty_micro_batches():
    assert regroup([9], budget=12, ranks=3) == [[[0]], [[]], [[]]]
    assert regroup([30, 9, 9, 9], budget=12, ranks=3) == [[[0], []], [[1], [3]], [[2], []]]


def test_a_document_above_the_budget_has_a_micro_batch_of_its_own():
    assert regroup([40, 3, 4], budget=12) == [[[0], [1, 2]]]


def test_in_order():
    assert in_order(5, size=2) == [[[0, 1], [2, 3], [4]]]
    assert in_order(5, size=2, ranks=2) == [[[0, 1], [4]], [[2, 3], []]]
    assert in_order(1, size=4, ranks=3) == [[[0]], [[]], [[]]]


@pytest.mark.parametrize("ranks", [1, 2])
def test_no_documents(ranks):
    assert regroup([], budget=8, ranks=ranks) == in_order(0, size=2, ranks=ranks) == [[]] * ranks
