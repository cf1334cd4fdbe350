"""An exported adapter is the trained one, and finds its base elsewhere."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from export.hf.conftest import logits, merge
from hasten.errors import ConfigError, ModelError, StorageError
from hasten.export.hf import adapter as adapters
from hasten.export.hf.adapter import write_adapter
from hasten.export.hf.base import open_model
from hasten.loading.beginning import FILE
from hasten.loading.plain_adapter import write_whole
from support import tiny


@pytest.fixture
def case(adapted):
    return adapted(tiny.llama(), target_modules=["q_proj", "v_proj"])


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def test_peft_loads_it(case, tmp_path):
    written = write_adapter(open_model(case.adapter), tmp_path / "out")
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(case.base), tmp_path / "out").eval()
    assert torch.equal(logits(again), logits(case.live))
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == (
        case.adapter / "adapter_model.safetensors"
    ).read_bytes()
    assert (written.dtype, written.tensors) == ("adapter", 8)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == 128
    assert "A LoRA adapter (rank 4, alpha 6)" in (tmp_path / "out" / "README.md").read_text()


def test_7_10_both_folders_are_moved(case, tmp_path):
    write_adapter(open_model(case.adapter), tmp_path / "out")
    assert config_of(tmp_path / "out")["base_model_name_or_path"] == "../base"
    for file in (tmp_path / "out").iterdir():
        if file.name != "tokenizer.json":
            assert str(tmp_path).encode() not in file.read_bytes()
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    moved.mkdir()
    for name in ("out", "base"):
        shutil.move(tmp_path / name, moved / name)
    opened = open_model(moved / "out")
    assert opened.base.folder == (moved / "base").resolve() and opened.notes == []
    name = "model.layers.0.self_attn.q_proj.weight"
    shutil.copytree(moved / "base", tmp_path / "base")
    assert torch.equal(opened.weights.read(name), merge(case).read(name))


def test_another_base_is_noticed(case, tmp_path):
    write_adapter(open_model(case.adapter), tmp_path / "out")
    tiny.save_model(tmp_path / "other", tiny.llama(rms_norm_eps=0.5))
    notes = open_model(tmp_path / "out", base=str(tmp_path / "other")).notes
    assert any("is not that of the base which the adapter was exported with" in note for note in notes)


@pytest.mark.parametrize(
    ("base", "name", "noted"),
    [("demo", "demo", True), ("someone/model", "someone/model", False), ("/elsewhere/model", "model", True)],
)
def test_bases_of_other_kinds(case, tmp_path, base, name, noted):
    from dataclasses import replace

    opened = replace(open_model(case.adapter), base_name=base, revision="abc" if "/" in name else None)
    written = write_adapter(opened, tmp_path / "out")
    made = config_of(tmp_path / "out")
    assert made["base_model_name_or_path"] == name and bool(written.notes) is noted
    assert made["revision"] == opened.revision
    assert json.loads((tmp_path / "out" / "base.json").read_text())["model_type"] == "llama"


def test_a_beginning_becomes_part_of_a_plain_adapter(case, tmp_path):
    weights = case.adapter / "adapter_model.safetensors"
    parts = load_file(weights)
    began = {
        name: torch.randn(value.shape, generator=torch.Generator().manual_seed(5)) for name, value in parts.items()
    }
    write_whole(began, case.adapter / FILE, adapter=hashlib.sha256(weights.read_bytes()).hexdigest())
    expected = merge(case)
    written = write_adapter(open_model(case.adapter), tmp_path / "out")
    assert "plain one of twice the rank" in written.notes[0] and not (tmp_path / "out" / FILE).exists()
    opened = open_model(tmp_path / "out")
    for name in expected.shapes:
        torch.testing.assert_close(opened.weights.read(name), expected.read(name), rtol=0, atol=1e-5)
    assert config_of(tmp_path / "out")["r"] == 8


def test_folders(case, tmp_path, monkeypatch):
    write_adapter(open_model(case.adapter), tmp_path / "out")
    write_adapter(open_model(case.adapter), tmp_path / "out")
    with pytest.raises(ConfigError, match="it holds 'config.json'.*never share one"):
        write_adapter(open_model(case.adapter), tiny.save_model(tmp_path / "model"))
    with pytest.raises(ConfigError, match="it holds the base model"):
        write_adapter(open_model(case.adapter), case.base)
    with pytest.raises(ConfigError, match="it holds the adapter that is exported"):
        write_adapter(open_model(case.adapter), case.adapter)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="a file"):
        write_adapter(open_model(case.adapter), tmp_path / "file")
    with pytest.raises(ConfigError, match="is a whole model.*Name a run"):
        write_adapter(open_model(case.base), tmp_path / "new")

    def full(source, target):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(adapters.shutil, "copyfile", full)
    with pytest.raises(StorageError, match="no space left"):
        write_adapter(open_model(case.adapter), tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("began", [False, True])
def test_an_adapter_that_is_not_finite_is_not_written(case, tmp_path, value, began):
    weights = case.adapter / "adapter_model.safetensors"
    parts = load_file(weights)
    whole = {name: part.clone() for name, part in parts.items()}
    name = next(name for name in parts if "v_proj.lora_B" in name)
    parts[name][1, 2] = value
    write_whole(whole if began else parts, weights, format="pt")
    if began:
        write_whole(parts, case.adapter / FILE, adapter=hashlib.sha256(weights.read_bytes()).hexdigest())
    with pytest.raises(ModelError, match=rf"'{name}' in .*adapter: it holds NaN or infinity.*never written"):
        write_adapter(open_model(case.adapter), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_tokens_than_rows(case, tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([f"<new-{number}>" for number in range(3)])
    tokenizer.save_pretrained(case.adapter)
    with pytest.raises(ModelError, match="a tokenizer of 131 tokens for an embedding of 128 rows"):
        write_adapter(open_model(case.adapter), tmp_path / "out")
    assert not (tmp_path / "out").exists()
