"""What more bytes are spent on."""

import random
from itertools import product

import pytest

from hasten.quant.choose import Upgrade, affordable


def way(nats, added, bits=16):
    return Upgrade(bits, 0, nats, added)


def names(upgrades, budget):
    return set(affordable(upgrades, budget))


ITEMS = {"big": [way(10.0, 100)], "small": [way(3.0, 10)], "poor": [way(1.0, 50)], "useless": [way(0.0, 1)]}


def test_what_saves_most_together():
    assert names(ITEMS, 110) == {"big", "small"}
    assert names(ITEMS, 109) == {"big"}, "the best ratio first would end with less"
    assert names(ITEMS, 99) == {"small", "poor"}
    assert names(ITEMS, 10_000) == {"big", "small", "poor"}


def test_nothing_without_a_budget():
    assert affordable(ITEMS, 0) == {} and affordable({}, 100) == {}


def test_one_way_for_each():
    both = {"a": [way(10.0, 100), way(2.0, 3, bits=4)], "b": [way(8.5, 100), way(1.0, 3, bits=4)]}
    assert affordable(both, 2) == {}
    assert affordable(both, 6) == {"a": both["a"][1], "b": both["b"][1]}
    assert affordable(both, 103) == {"a": both["a"][0], "b": both["b"][1]}
    assert affordable(both, 500) == {"a": both["a"][0], "b": both["b"][0]}


@pytest.mark.parametrize("seed", range(5))
def test_as_trying_everything(seed):
    drawn = random.Random(seed)
    items = {str(number): [way(drawn.random(), drawn.randint(1, 400)) for _ in range(2)] for number in range(7)}
    most = 0.0
    for picked in product((0, 1, None), repeat=len(items)):
        ways = [ways[number] for ways, number in zip(items.values(), picked, strict=True) if number is not None]
        if sum(one.bytes_added for one in ways) <= 800:
            most = max(most, sum(one.nats_saved for one in ways))
    chosen = affordable(items, 800).values()
    assert sum(one.nats_saved for one in chosen) == pytest.approx(most)
    assert sum(one.bytes_added for one in chosen) <= 800


def test_many_bytes_are_kept_to_the_byte():
    drawn = random.Random(0)
    items = {str(number): [way(drawn.random(), drawn.randint(10**6, 10**8))] for number in range(300)}
    spent = sum(one.bytes_added for one in affordable(items, 10**9).values())
    assert 0.99 * 10**9 < spent <= 10**9
