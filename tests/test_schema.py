"""Settings: the same checks wherever they come from, every problem at once, each with its remedy."""

from dataclasses import dataclass
from typing import Literal

import pytest

from hasten import schema
from hasten.errors import ConfigErrors
from hasten.schema import option, section


@dataclass(kw_only=True)
class Inner:
    rate: float = option(1e-3, "a number", low=0, high=1)
    names: list[str] = option([], "a list")
    seed: int = option(3407, "whole", low=0)


@dataclass(kw_only=True)
class Outer:
    inner: Inner = section(Inner, "nested")
    mode: Literal["auto", "on", "off"] = option("auto", "a choice")
    kind: Literal["cosine", "linear"] | None = option(None, "a choice or nothing")
    label: str | None = option(None, "text or nothing")
    name: str = option("x", "text")
    fast: bool = option(False, "truth")


def problems_of(values):
    with pytest.raises(ConfigErrors) as caught:
        schema.build(Outer, values)
    return {problem.subject: problem for problem in caught.value.problems}


def test_defaults_and_plain_values():
    assert schema.build(Outer, {}) == Outer()
    made = schema.build(Outer, {"inner": {"rate": 0.5, "names": ["a", "b"]}, "mode": "on", "label": None, "fast": True})
    assert made == Outer(inner=Inner(rate=0.5, names=["a", "b"]), mode="on", fast=True)


def test_an_empty_group_keeps_its_defaults():
    assert schema.build(Outer, {"inner": None}) == Outer()


def test_a_default_list_is_not_shared():
    Inner().names.append("x")
    assert Inner().names == []


def test_all_problems_at_once_with_path_value_rule_and_remedy():
    found = problems_of(
        {
            "inner": {"rat": 1, "rate": 1.5, "seed": -1, "names": [1]},
            "mode": "onn",
            "kind": "cosin",
            "label": 7,
            "name": None,
            "fast": "yes",
            "extra": 0,
        }
    )
    assert {name: (problem.value, problem.rule, problem.remedy) for name, problem in found.items()} == {
        "inner.rat": ("unknown setting", "Known here: rate, names, seed.", "Did you mean 'rate'?"),
        "inner.rate": ("1.5", "It must be at most 1.", "Lower it."),
        "inner.seed": ("-1", "It must be at least 0.", "Raise it."),
        "inner.names": ("[1]", "Allowed: list of text.", "Change it."),
        "mode": ("'onn'", "Allowed: 'auto' or 'on' or 'off'.", "Did you mean 'on'?"),
        "kind": ("'cosin'", "Allowed: 'cosine' or 'linear' or nothing.", "Did you mean 'cosine'?"),
        "label": ("7", "Allowed: text or nothing.", "Put it in quotes."),
        "name": ("None", "Allowed: text.", "Change it."),
        "fast": ("'yes'", "Allowed: true or false.", "Change it."),
        "extra": ("unknown setting", "Known here: inner, mode, kind, label, name, fast.", "Remove it."),
    }


def test_a_group_must_be_a_group():
    problem = problems_of({"inner": 8})["inner"]
    assert (problem.value, problem.remedy) == ("8", "Write its fields below `inner:`.")


@pytest.mark.parametrize(("text", "number"), [("2e-4", 2e-4), ("1", 1.0), (1, 1.0)])
def test_yaml_reads_some_numbers_as_text(text, number):
    value = schema.build(Inner, {"rate": text}).rate
    assert value == number and type(value) is float


@pytest.mark.parametrize(("written", "meant"), [(True, "on"), (False, "off")])
def test_yaml_reads_on_and_off_as_truth(written, meant):
    assert schema.build(Outer, {"mode": written}).mode == meant


def test_a_large_whole_number_keeps_every_digit():
    assert schema.build(Inner, {"seed": 2**63 + 1}).seed == 2**63 + 1
    assert schema.build(Inner, {"seed": "60"}).seed == 60
    assert schema.build(Inner, {"seed": 60.0}).seed == 60


@pytest.mark.parametrize("value", [1.5, "x", True, None, float("inf"), float("nan"), [1]])
def test_what_is_no_whole_number(value):
    with pytest.raises(ConfigErrors, match="inner.seed.*a whole number"):
        schema.build(Outer, {"inner": {"seed": value}})


@pytest.mark.parametrize("value", ["fast", True, None, float("nan"), "inf"])
def test_what_is_no_number(value):
    with pytest.raises(ConfigErrors, match="inner.rate.*a number"):
        schema.build(Outer, {"inner": {"rate": value}})


@pytest.mark.parametrize("value", ["a", ("a",), ["a"]])
def test_one_item_is_a_list(value):
    assert schema.build(Inner, {"names": value}).names == ["a"]


def test_check_settles_an_object_made_by_hand():
    made = Outer(inner=Inner(rate="2e-4"))
    schema.check(made)
    assert made.inner.rate == 2e-4
    grouped = Outer(inner={"seed": 5})
    schema.check(grouped)
    assert grouped.inner == Inner(seed=5)


def test_check_finds_all_problems_and_changes_nothing():
    made = Outer(inner=Inner(rate="2e-4", seed=-1), mode="onn")
    with pytest.raises(ConfigErrors) as caught:
        schema.check(made, "run")
    assert [problem.subject for problem in caught.value.problems] == ["run.inner.seed", "run.mode"]
    assert made.inner.rate == "2e-4"


def test_fields_are_the_leaves_depth_first():
    found = [(name, owner, value) for name, owner, value, _ in schema.fields(Outer())]
    assert found[:2] == [("inner.rate", Inner, 1e-3), ("inner.names", Inner, [])]
    assert [name for name, *_ in found][3:] == ["mode", "kind", "label", "name", "fast"]


def test_every_setting_of_hasten_has_help_and_a_lawful_default():
    from hasten.training.config import RunConfig

    config = RunConfig()
    schema.check(config)
    assert all(declared.metadata["help"] for *_, declared in schema.fields(config))


def test_a_day_that_yaml_recognised_is_text():
    import datetime

    from hasten.data.settings import DataSettings

    assert schema.build(DataSettings, {"date": datetime.date(2026, 1, 31)}).date == "2026-01-31"
