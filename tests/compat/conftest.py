"""Fixtures of the compatible API: tiny models through its own loaders."""

import importlib.metadata
import importlib.util

import pytest
import torch

from hasten.compat import notes

_TRL = importlib.metadata.version("trl") if importlib.util.find_spec("trl") else ""

trl_that_trains = pytest.mark.skipif(
    _TRL.startswith("1.15.") and not torch.cuda.is_available(),
    reason="trl 1.15 computes its loss with a Triton kernel, which needs a GPU",
)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Trainers without an `output_dir` make one where they are."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _nothing_said_yet():
    notes._said.clear()


@pytest.fixture
def loaded(tiny_model_folder):
    """A tiny model and its tokenizer, as a script gets them."""
    from hasten import FastLanguageModel

    return FastLanguageModel.from_pretrained(str(tiny_model_folder), load_in_4bit=False, max_seq_length=48)


@pytest.fixture
def adapted(loaded):
    """The same with an adapter whose every matrix has values."""
    from hasten import FastLanguageModel

    model, tokenizer = loaded
    return moved(FastLanguageModel.get_peft_model(model, r=4, lora_alpha=16)), tokenizer


@pytest.fixture
def adapted_twice(tiny_model_folder):
    """Two of them, equal to the bit."""
    from hasten import FastLanguageModel

    made = []
    for _ in range(2):
        torch.manual_seed(0)
        model, tokenizer = FastLanguageModel.from_pretrained(
            str(tiny_model_folder), load_in_4bit=False, max_seq_length=48
        )
        made.append((moved(FastLanguageModel.get_peft_model(model, r=4, lora_alpha=16)), tokenizer))
    return made


def moved(model, seed=1):
    """Give every trained weight values that change the output."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += torch.randn(weight.shape, generator=generator).to(weight) * 0.05
    return model
