"""The configuration of a run: the settings of its components, put together.

It stands here and not at the bottom of the package because it names its components' own dataclasses; the mechanism
(checking, messages, nearest names) is `hasten.schema`. YAML files and command-line flags are two spellings of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hasten import schema
from hasten.data.settings import DataSettings
from hasten.errors import ConfigError, did_you_mean
from hasten.loading.settings import ModelSettings
from hasten.lora.settings import LoraSettings
from hasten.schema import option, section
from hasten.training.settings import TrainingSettings


@dataclass(kw_only=True)
class RunConfig:
    """Everything a training run is made from."""

    model: ModelSettings = section(ModelSettings, "which model")
    data: DataSettings = section(DataSettings, "which rows")
    lora: LoraSettings = section(LoraSettings, "the adapter")
    training: TrainingSettings = section(TrainingSettings, "how to train")
    runs: str = option("runs", "the folder that holds the runs")
    output: str | None = option(None, "this run's own folder; none: a new one in `runs`")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as a YAML file would hold them."""
        return dataclasses.asdict(self)


def read_config(path: Path) -> dict[str, Any]:
    """The plain values of a YAML file.

    Raises:
        ConfigError: the file is missing, not YAML, or not a mapping.
    """
    if not path.is_file():
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        remedy = did_you_mean(path.name, names, "Check the spelling and the working folder.")
        raise ConfigError(str(path), "no such file", "A configuration is one YAML file.", remedy)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as cause:
        where = getattr(cause, "problem_mark", None)
        place = f" at line {where.line + 1}" if where else ""
        raise ConfigError(
            str(path), f"not valid YAML{place}", "A configuration is one YAML file.", "Correct it."
        ) from cause
    if values is None:
        return {}
    if not isinstance(values, dict):
        rule = "A configuration is a mapping of section to settings."
        raise ConfigError(
            str(path), f"a YAML {type(values).__name__}", rule, "Write `training:` and the like, each with its fields."
        )
    return values


def parse_flags(arguments: Sequence[str]) -> dict[str, Any]:
    """Turn ``--lora.r 8 --training.steps=60`` into nested plain values, each read as YAML would read it.

    Raises:
        ConfigError: a word that is no flag, or a flag without a value.
    """
    values: dict[str, Any] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise ConfigError(
                word, "not a flag", "Settings are written --section.field value.", "Remove it or write --."
            )
        name, equals, text = word[2:].partition("=")
        if not equals:
            if not words:
                raise ConfigError(word, "no value", "Settings are written --section.field value.", "Give it a value.")
            text = words.pop(0)
        _set(values, name.replace("-", "_").split("."), _value(text))
    return values


def combine(*layers: Mapping[str, Any]) -> RunConfig:
    """One configuration from several mappings; later ones win field by field.

    Raises:
        ConfigErrors: all problems at once.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        _overlay(merged, layer)
    return schema.build(RunConfig, merged)


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _set(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            rule = f"`{part}` is a group of settings."
            raise ConfigError(f"--{part}", repr(inner), rule, f"Write --{'.'.join(path)} alone.")
        values = inner
    values[path[-1]] = value


def _overlay(target: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for key, value in layer.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _overlay(target[key], value)
        else:
            target[key] = dict(value) if isinstance(value, Mapping) else value
