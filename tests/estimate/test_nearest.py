"""Proposals fit, change as little as they can, and come in that order."""

import pytest

from hasten.estimate.facts import facts_of
from hasten.estimate.nearest import nearest, smallest
from hasten.estimate.need import Machine, Settings, estimate
from hasten.hardware.memory import Budget
from hasten.hardware.probe import Hardware
from support import tiny

ASKED = Settings(full=True, batch=8, length=2048, checkpointing="off")


@pytest.fixture(scope="module")
def facts():
    return facts_of("tiny", tiny.llama(tied=False, hidden_size=512, intermediate_size=1024).config)


def machine(free):
    card = Hardware(device="cuda:0", name="Card", total_bytes=20 << 20, cores=1, bf16=True, unified_memory=True)
    return Machine(hardware=card, budget=Budget(bytes=free, rule="", reserve=0))


def test_what_keeps_the_numbers_comes_first(facts):
    need = estimate(facts, ASKED, machine(0)).total
    found = nearest(facts, ASKED, machine(need - 1))
    assert "the same numbers" in found[0].changes[0] and len(found[0].changes) == 1
    assert "as many accumulations" in found[1].changes[0]
    assert all(each.estimate.fits and each.estimate.total < need for each in found)
    sets = [set(each.changes) for each in found]
    assert not any(one < other for one in sets for other in sets), "nothing is changed needlessly"


def test_less_memory_takes_more_changes(facts):
    least = smallest(facts, ASKED, machine(0))
    assert not least.estimate.fits and len(least.changes) == 6
    assert nearest(facts, ASKED, machine(least.estimate.total - 1)) == []
    (only,) = nearest(facts, ASKED, machine(least.estimate.total))
    assert only.estimate.total == least.estimate.total


def test_a_checkpoint_that_is_quantized_keeps_its_storage():
    config = tiny.llama(tied=False).config
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    facts = facts_of("tiny", config)
    assert not any("--storage" in word for word in smallest(facts, Settings(), machine(0)).changes)


def test_one_row_of_the_shortest_with_everything_asked_for_has_no_neighbour(facts):
    settings = Settings(batch=1, length=512, storage="nf4", optimizer="adamw_8bit", checkpointing="on")
    assert smallest(facts, settings, machine(0)).changes == ()
