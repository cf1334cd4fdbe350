"""Adapters on disk: complete or absent, finite, with a base that others can find."""

import json

import pytest
import torch

from hasten.errors import StorageError, TrainingError
from hasten.loading.model import LoadOptions, load
from hasten.lora.attach import attach
from hasten.lora.save import refuse_untouched, save_adapter
from hasten.lora.settings import LoraSettings


@pytest.fixture
def adapted(tiny_model_folder):
    loaded = load(str(tiny_model_folder), LoadOptions())
    model = attach(loaded.model, LoraSettings(r=4, alpha=8)).model
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(generator=torch.Generator().manual_seed(0))
    return model, loaded.tokenizer


def test_saved_adapter_gives_the_same_logits(adapted, tiny_model_folder, tmp_path):
    model, tokenizer = adapted
    save_adapter(model, tokenizer, tmp_path / "ö ä" / "adapter", str(tiny_model_folder))
    ids = torch.arange(3, 15).unsqueeze(0)
    again = load(str(tmp_path / "ö ä" / "adapter"), LoadOptions())
    assert torch.equal(model.eval()(ids).logits, again.model.eval()(ids).logits)
    assert any(value.requires_grad for value in again.model.parameters()), "a loaded adapter can be trained on"


def test_the_base_is_recorded_as_the_user_calls_it(adapted, tmp_path):
    model, tokenizer = adapted
    before = model.peft_config["default"].base_model_name_or_path
    save_adapter(model, tokenizer, tmp_path / "adapter", "demo")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "demo"
    assert model.peft_config["default"].base_model_name_or_path == before


def test_nan_is_never_saved(adapted, tmp_path):
    model, tokenizer = adapted
    name, value = next((n, v) for n, v in model.named_parameters() if "lora_B" in n)
    with torch.no_grad():
        value[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="NaN or infinity") as caught:
        save_adapter(model, tokenizer, tmp_path / "adapter", "demo")
    assert caught.value.subject == name
    assert not (tmp_path / "adapter").exists()


def test_a_full_disk_leaves_the_old_adapter(adapted, tmp_path, monkeypatch):
    model, tokenizer = adapted
    save_adapter(model, tokenizer, tmp_path / "adapter", "first")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokenizer, "save_pretrained", full)
    with pytest.raises(StorageError, match="no space left.*Free some space"):
        save_adapter(model, tokenizer, tmp_path / "adapter", "second")
    assert "first" in (tmp_path / "adapter" / "adapter_config.json").read_text()
    assert [entry.name for entry in tmp_path.iterdir() if "adapter" in entry.name] == ["adapter"]


def test_an_adapter_that_never_moved_is_refused(tiny_llama):
    with pytest.raises(TrainingError, match="Nothing was learnt.*learning_rate"):
        refuse_untouched(attach(tiny_llama, LoraSettings()).model)
