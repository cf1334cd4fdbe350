"""A base folder, an adapter on it whose every part is moved, and what a model made of merged weights computes."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from hasten.export.hf.merged import MergedWeights
from hasten.export.weights import PlainFolder
from support import tiny

IDS = torch.randint(3, 120, (2, 12), generator=torch.Generator().manual_seed(0))


def moved(model, strength=0.1):
    """Every trained value away from where it began, and reproducibly."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(torch.randn(value.shape, generator=generator).to(value.dtype) * strength)
    return model.eval()


def adapt(folder, model, tmp_path, *, save=None, grown=None, strength=0.1, **lora):
    """A saved base, a live adapted model of it, and the adapter's folder."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    live = copy.deepcopy(model)
    live.name_or_path = str(folder)
    if grown:
        live.resize_token_embeddings(grown, mean_resizing=False)
    live = moved(get_peft_model(live, LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 6, **lora})), strength)
    adapter = tmp_path / "adapter"
    live.save_pretrained(adapter, **({"save_embedding_layers": False} if save is None else save))
    return SimpleNamespace(base=folder, live=live, adapter=adapter)


def model_of(weights):
    """A transformers model of any `Weights`, in float32: as a folder of them would load."""
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {key: value for key, value in weights.config.items() if key not in ("dtype", "torch_dtype")}
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
    state = {name: weights.read(name).float() for name in weights.shapes}
    for name, value in state.items():
        assert tuple(value.shape) == weights.shapes[name]
    missing, unexpected = made.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if made.config.tie_word_embeddings else set())
    made.tie_weights()
    return made.eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits.float()


@pytest.fixture
def adapted(tmp_path):
    """Makes one: ``adapted(model, target_modules=[...])``."""

    def make(model, **lora):
        return adapt(tmp_path / "base", model, tmp_path, **lora)

    return make


def merge(case):
    return MergedWeights(PlainFolder(case.base), case.adapter)
