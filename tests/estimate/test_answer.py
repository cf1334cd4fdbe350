"""The questions of a recorded machine with shared memory, answered from config.json files alone."""

import json
from pathlib import Path

import pytest

from hasten.estimate.answer import answer
from hasten.estimate.machines import of_size, recorded
from hasten.estimate.models import describe
from hasten.estimate.need import Settings
from hasten.hardware.memory import GIB
from hasten.loading.model import LoadOptions

HERE = Path(__file__).parent
SPARK = recorded(HERE.parent / "hardware" / "probes" / "spark-page-cache.json")


def asked(name, settings, machine=SPARK):
    return answer(describe(str(HERE / "models" / f"{name}.json"), LoadOptions()), settings, machine)


@pytest.mark.parametrize(
    ("name", "settings", "values", "least", "most"),
    [
        # Weights, gradients and the optimizer's states alone: 8 bytes for each of 3.2e9 values.
        ("llama-3.2-3b", Settings(full=True), 3_212_749_824, 24, 60),
        ("llama-3.1-8b", Settings(), 8_030_261_248, 15, 65),
        ("llama-3.3-70b", Settings(storage="nf4"), 70_553_706_496, 37, 107),
    ],
)
def test_what_fits_on_a_spark(name, settings, values, least, most):
    found = asked(name, settings)
    assert found.facts.values == values and found.facts.fast
    assert found.estimate.fits and least * GIB < found.estimate.total < most * GIB
    assert not found.proposals and found.least is None
    assert "fits: " in found.lines()[-1] and "are left" in found.lines()[-1]


def test_70b_in_16_bits_is_told_what_fits():
    found = asked("llama-3.3-70b", Settings())
    assert not found.estimate.fits and found.proposals[0].changes == ("--storage fp8",)
    assert all(each.estimate.fits for each in found.proposals)
    text = "\n".join(found.lines())
    assert "does not fit: " in text and "nearest settings that fit:" in text and "--storage fp8" in text


@pytest.mark.parametrize(
    ("name", "values", "in_four"),
    [("gpt-oss-120b", 116_829_156_672, "53.4"), ("qwen3-235b-a22b", 235_093_634_560, "105.8")],
)
def test_mixtures_of_experts_are_not_trained_in_4_bits_yet(name, values, in_four):
    found = asked(name, Settings(storage="nf4"))
    assert found.facts.values == values
    text = "\n".join(found.lines())
    assert not found.estimate.fits and not found.proposals
    assert "hasten cannot train this model in 4 bits yet" in text and f"would take {in_four} GiB" in text
    assert found.least is not None and "nothing fits; the smallest need is " in text
    assert found.estimate.parts["weights: experts"] > 1.8 * (values - found.facts.values * 0.05)


def test_a_checkpoint_in_another_format_is_said():
    assert any("mxfp4" in note and "no test" in note for note in asked("gpt-oss-120b", Settings()).notes)


def test_full_fine_tuning_that_does_not_fit_24_gb():
    found = asked("llama-3.2-3b", Settings(full=True), of_size("24GB"))
    changes = [each.changes for each in found.proposals]
    assert changes == [("--optimizer adamw_8bit",), ("an adapter of rank 16 instead of all weights",)]
    smaller = asked("llama-3.2-3b", Settings(full=True), of_size("16GB"))
    assert all("an adapter" in each.changes[-1] for each in smaller.proposals) and smaller.proposals


def test_a_budget_shows_both_figures():
    line = asked("llama-3.1-8b", Settings()).lines()[1]
    assert "NVIDIA GB10: 107.4 GiB" in line and "MemAvailable 115.0 GiB" in line and "CUDA says 41.0 GiB free" in line


def test_plain_values():
    found = asked("llama-3.3-70b", Settings()).as_dict()
    assert json.loads(json.dumps(found))["model"] == found["model"]
    assert sum(found["parts_bytes"].values()) == found["total_bytes"] > found["budget_bytes"] and not found["fits"]
    assert found["proposals"][0]["fits"] and found["machine"]["budget"]["figures"]["cuda_free"]


def test_rows_longer_than_the_model_was_made_for():
    notes = asked("qwen3-235b-a22b", Settings(length=65536)).notes
    assert any("made for 40,960 positions" in note for note in notes)
