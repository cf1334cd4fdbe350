"""Family files: what they claim exists, no model type is claimed twice, an unknown one is generic."""

import re
import types
from pathlib import Path

import pytest

import hasten.families
from hasten.families import base
from hasten.families.base import GENERIC, Family, Supported, Unsupported, all_families, family_of

ROOT = Path(__file__).parents[2]
FAMILIES = all_families()


def test_lookup_by_model_type():
    assert family_of("llama").name == "LLaMA"
    assert family_of("phi3").name == "Phi-3"
    assert family_of("no-such-model") is GENERIC


def test_every_file_declares_a_family():
    files = [
        path.stem for path in Path(hasten.families.__path__[0]).glob("*.py") if path.stem not in ("__init__", "base")
    ]
    assert len(FAMILIES) == len(files)
    assert all(family.model_types for family in FAMILIES)


def test_a_capability_that_is_not_listed_is_untested():
    family = Family(name="x", model_types=("x",), capabilities={"a": Supported("t"), "b": Unsupported("why")})
    assert family.supports("a") and not family.supports("b") and not family.supports("c")
    assert not GENERIC.supports("packing")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_test_that_proves_a_capability_exists(family):
    for name, known in family.capabilities.items():
        if isinstance(known, Supported):
            file, _, test = known.test.partition("::")
            assert re.search(rf"^def {re.escape(test)}\(", (ROOT / file).read_text(), re.MULTILINE), (name, known.test)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_targets_and_fused_names_are_modules_of_the_tiny_model(family):
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    for model_type in family.model_types:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**family.tiny))
        present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        assert present.issuperset(family.lora_targets)
        assert present.issuperset(family.fused)
        assert not present.intersection(part for parts in family.fused.values() for part in parts)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_tiny_model_is_odd_on_purpose(family):
    tiny = family.tiny
    assert tiny["num_hidden_layers"] == 2
    assert tiny["num_key_value_heads"] < tiny["num_attention_heads"], "grouped queries"
    assert tiny["vocab_size"] % 2, "no round vocabulary"


def test_two_files_that_claim_one_type_are_named(monkeypatch):
    module = types.SimpleNamespace(FAMILY=Family(name="twin", model_types=("llama",)))
    monkeypatch.setattr(base.importlib, "import_module", lambda name: module)
    all_families.cache_clear()
    try:
        with pytest.raises(RuntimeError, match=r"llama is claimed by gemma3 and llama"):
            all_families()
    finally:
        all_families.cache_clear()
