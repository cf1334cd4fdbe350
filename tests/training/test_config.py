"""One configuration, three spellings, all problems at once."""

import pytest

from hasten.errors import ConfigError, ConfigErrors
from hasten.training.config import RunConfig, combine, parse_flags, read_config


def test_flags_are_read_as_yaml_would_read_them():
    flags = "--lora.r 8 --training.learning-rate=2e-4 --lora.targets [q_proj,v_proj] --lora.rslora true".split()
    config = combine(parse_flags(flags))
    assert (config.lora.r, config.training.learning_rate) == (8, 2e-4)
    assert config.lora.targets == ["q_proj", "v_proj"]
    assert config.lora.rslora is True


def test_later_layers_win_field_by_field():
    config = combine({"lora": {"r": 8, "alpha": 3}}, {"lora": {"r": 4}})
    assert (config.lora.r, config.lora.alpha) == (4, 3.0)
    assert config.training == RunConfig().training


def test_all_problems_are_shown_at_once_with_path_value_and_nearest_name():
    with pytest.raises(ConfigErrors) as caught:
        combine({"lora": {"r": 0, "drpout": 0.1}, "training": {"schedule": "linaer", "steps": "many"}, "modle": {}})
    text = str(caught.value)
    assert len(caught.value.problems) == 5
    for expected in (
        "lora.r: 0.",
        "at least 1",
        "lora.drpout: unknown setting",
        "Did you mean 'dropout'?",
        "training.schedule: 'linaer'",
        "Did you mean 'linear'?",
        "training.steps: 'many'",
        "modle: unknown setting",
        "Did you mean 'model'?",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("flags", "value", "remedy"),
    [
        (["lora.r", "8"], "lora.r: not a flag", "Remove it"),
        (["--lora.r"], "no value", "Give it a value"),
        (["--lora", "3", "--lora.r", "8"], "--lora: 3", "--lora.r alone"),
    ],
)
def test_bad_flags(flags, value, remedy):
    with pytest.raises(ConfigError) as caught:
        parse_flags(flags)
    assert value in str(caught.value) and remedy in str(caught.value)


def test_yaml_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("lora:\n  r: 8\n", encoding="utf-8")
    assert combine(read_config(file)).lora.r == 8
    with pytest.raises(ConfigError, match=r"no such file.*Did you mean 'run.yaml'"):
        read_config(tmp_path / "rum.yaml")
    file.write_text("lora: [1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="not valid YAML at line"):
        read_config(file)
    file.write_text("- a\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="a YAML list"):
        read_config(file)
    file.write_text("", encoding="utf-8")
    assert combine(read_config(file)) == RunConfig()
