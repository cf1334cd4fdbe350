"""A name becomes weights: models, adapters with their bases, runs."""

import hashlib
import json
import shutil

import pytest
import torch

from export.hf.conftest import adapt
from hasten.errors import ModelError, RunError
from hasten.export.hf.adapter import write_adapter
from hasten.export.hf.base import open_model
from hasten.export.hf.dequantized import DequantizedFolder
from hasten.export.hf.merged import MergedWeights
from hasten.export.weights import PlainFolder
from hasten.files import write_json
from hasten.loading.model import LoadOptions
from hasten.runs.folder import RunFolder
from support import tiny
from support.gguf_files import write_llama

NAMED = "base_model_name_or_path"
NAME = "model.layers.0.self_attn.q_proj.weight"


def test_a_model_folder(tiny_model_folder):
    opened = open_model(tiny_model_folder)
    assert isinstance(opened.weights, PlainFolder) and opened.weights is opened.base
    assert (opened.base_name, opened.adapter, opened.run, opened.notes) == (str(tiny_model_folder), None, None, [])
    with pytest.raises(ModelError, match="no adapter, and base is 'demo'.*Leave base out"):
        open_model(tiny_model_folder, base="demo")


def test_an_adapter_and_the_base_it_names(adapted):
    case = adapted(tiny.llama(), target_modules=["q_proj"])
    opened = open_model(case.adapter)
    assert isinstance(opened.weights, MergedWeights) and opened.adapter == case.adapter.resolve()
    assert opened.base.folder == case.base and opened.base_name == str(case.base)


def test_the_demo_model(monkeypatch, tiny_model_folder):
    monkeypatch.setattr("hasten.loading.demo.demo_folder", lambda cache: tiny_model_folder)
    opened = open_model("demo")
    assert (opened.base_name, opened.weights.folder) == ("demo", tiny_model_folder)


def test_an_explicit_base_wins(adapted, tmp_path):
    case = adapted(tiny.llama(), target_modules=["q_proj"])
    other = shutil.copytree(case.base, tmp_path / "elsewhere")
    shutil.rmtree(case.base)
    with pytest.raises(ModelError, match=r"its base model '.*base' is not there.*name it .--base or base="):
        open_model(case.adapter)
    assert open_model(case.adapter, base=str(other)).base.folder == other


def test_a_base_beside_the_adapter(adapted, tmp_path):
    case = adapted(tiny.llama(), target_modules=["q_proj"])
    config = json.loads((case.adapter / "adapter_config.json").read_text())
    write_json(case.adapter / "adapter_config.json", {**config, "base_model_name_or_path": "../base"})
    moved = shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}-moved")
    assert open_model(moved / "adapter").base.folder == (moved / "base").resolve()


def test_a_base_that_is_no_base(adapted, tmp_path):
    case = adapted(tiny.llama(), target_modules=["q_proj"])
    config = json.loads((case.adapter / "adapter_config.json").read_text())
    second = shutil.copytree(case.adapter, tmp_path / "second")
    write_json(second / "adapter_config.json", {**config, "base_model_name_or_path": str(case.adapter)})
    with pytest.raises(ModelError, match="is an adapter too.*Merge that adapter first"):
        open_model(second)
    write_json(second / "adapter_config.json", {**config, "base_model_name_or_path": None})
    with pytest.raises(ModelError, match="names no base model.*base="):
        open_model(second)


def test_a_hub_id_in_the_cache(adapted, tmp_path, monkeypatch):
    from huggingface_hub import constants

    case = adapted(tiny.llama(), target_modules=["q_proj"])
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "hub" / "models--someone--tiny" / "snapshots" / commit
    shutil.copytree(case.base, snapshot)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    config = json.loads((case.adapter / "adapter_config.json").read_text())
    write_json(case.adapter / "adapter_config.json", {**config, "base_model_name_or_path": "someone/tiny"})
    opened = open_model(case.adapter)
    assert (opened.base_name, opened.revision, opened.base.folder) == ("someone/tiny", commit, snapshot)
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"'someone/tiny' is not there \(some of its files are missing"):
        open_model(case.adapter)
    with pytest.raises(ModelError, match=r"someone/other: it is not in the hub's cache, and was not downloaded"):
        open_model("someone/other")


# --- runs -------------------------------------------------------------------------------------------------------------


def run_of(case, tmp_path, **record):
    run = RunFolder.create_at(tmp_path / "run")
    run.write_record({"header": [], "base_model": str(case.base), **record})
    return run


def test_a_run(adapted, tmp_path):
    case = adapted(tiny.llama(), target_modules=["q_proj"])
    run = run_of(case, tmp_path, header=[{"part": "frozen weights", "choice": "nf4"}])
    with pytest.raises(RunError, match=r"it holds no adapter.*resume it"):
        open_model(run.path)
    shutil.copytree(case.adapter, run.adapter)
    opened = open_model(run.path)
    assert opened.run is not None and opened.run.path == run.path and opened.adapter == run.adapter.resolve()
    assert opened.notes == ["the adapter was trained on weights in nf4; it is merged into what those were made from"]


# --- quantized bases --------------------------------------------------------------------------------------------------


@pytest.fixture
def four_bit(tmp_path):
    """A folder in NF4, the folder it was made from, and an adapter that names the former."""
    pytest.importorskip("bitsandbytes", reason="4-bit weights are bitsandbytes'")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    case = adapt(tmp_path / "base", tiny.llama(tied=False), tmp_path, target_modules=["q_proj"])
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = AutoModelForCausalLM.from_pretrained(case.base, quantization_config=settings, dtype=torch.float32)
    model.save_pretrained(tmp_path / "four")
    tiny.tokenizer().save_pretrained(tmp_path / "four")
    config = json.loads((case.adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "four")
    write_json(case.adapter / "adapter_config.json", config)
    return case


def test_a_quantized_base_is_taken_as_what_it_stands_for(four_bit, tmp_path):
    opened = open_model(four_bit.adapter)
    assert isinstance(opened.base, DequantizedFolder) and NAME in opened.base.in_nf4
    assert "are kept by bitsandbytes: they are exported as the values that they stand for" in opened.notes[0]
    explicit = open_model(four_bit.adapter, base=str(four_bit.base))
    assert isinstance(explicit.base, PlainFolder) and explicit.notes == []
    away = (opened.base.read(NAME) - explicit.base.read(NAME)).norm() / explicit.base.read(NAME).norm()
    assert 0.05 < float(away) < 0.15  # NF4 with blocks of 64 loses 9 % of normal values
    added = opened.weights.read(NAME) - opened.base.read(NAME)
    wanted = explicit.weights.read(NAME) - explicit.base.read(NAME)
    torch.testing.assert_close(added, wanted, rtol=0, atol=1e-6)


def test_the_original_that_our_own_folder_names(four_bit, tmp_path):
    write_json(tmp_path / "four" / "quantization.json", {"model": str(four_bit.base)})
    opened = open_model(four_bit.adapter)
    assert isinstance(opened.base, PlainFolder) and opened.base.folder == four_bit.base
    assert "the 16-bit weights that" in opened.notes[0]
    shutil.rmtree(four_bit.base)
    opened = open_model(four_bit.adapter, options=LoadOptions())
    assert isinstance(opened.base, DequantizedFolder)
    assert f"made from, '{four_bit.base}', is not at hand" in opened.notes[0]


def test_an_original_is_looked_for_beside_the_quantized_folder_alone(four_bit, tmp_path, monkeypatch):
    write_json(tmp_path / "four" / "quantization.json", {"model": "base"})
    elsewhere = tmp_path / "elsewhere"
    tiny.save_model(elsewhere / "base", tiny.llama(tied=False))
    monkeypatch.chdir(elsewhere)
    assert open_model(four_bit.adapter).base.folder == four_bit.base
    shutil.rmtree(four_bit.base)
    opened = open_model(four_bit.adapter)
    assert isinstance(opened.base, DequantizedFolder) and "made from, 'base', is not at hand" in opened.notes[0]
    inside = tiny.save_model(tmp_path / "four" / "base", tiny.llama(tied=False))
    assert open_model(four_bit.adapter).base.folder == inside


def test_an_exported_adapter_of_a_quantized_base_knows_its_original(four_bit, tmp_path):
    write_json(tmp_path / "four" / "quantization.json", {"model": str(four_bit.base)})
    write_adapter(open_model(four_bit.adapter), tmp_path / "out")
    assert not any("is not that of the base" in note for note in open_model(tmp_path / "out").notes)


def test_an_exported_adapter_of_a_gguf_file_finds_it(adapted, tmp_path):
    case = adapted(tiny.llama(), target_modules=["q_proj"])
    (tmp_path / "g").mkdir()
    file = write_llama(tmp_path / "g" / "b.gguf", tiny.llama(), tiny.tokenizer())
    options = LoadOptions(cache=tmp_path / "cache")
    written = write_adapter(open_model(case.adapter, base=str(file), options=options), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())[NAMED] == "../g/b.gguf"
    assert any("'../g/b.gguf' is a GGUF file" in note and "--to hf" in note for note in written.notes)
    moved = shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}-moved")
    shutil.rmtree(tmp_path / "g")
    opened = open_model(moved / "out", options=options)
    assert opened.base_name == str((moved / "g" / "b.gguf").resolve())
    assert not any("is not that of the base" in note for note in opened.notes)


@pytest.mark.parametrize(
    ("place", "called"),
    [
        ("registry.ollama.ai/library/tiny/latest", "ollama:tiny:latest"),
        ("registry.ollama.ai/me/tiny/1b", "ollama:me/tiny:1b"),
        ("hf.co/org/tiny-GGUF/Q4_K_M", "ollama:hf.co/org/tiny-GGUF:Q4_K_M"),
        ("hf.co/library/tiny/q8", "ollama:hf.co/library/tiny:q8"),
    ],
)
def test_an_exported_adapter_of_an_ollama_model_says_its_name(place, called, adapted, tmp_path, monkeypatch):
    case = adapted(tiny.llama(), target_modules=["q_proj"])
    file = write_llama(tmp_path / "x.gguf", tiny.llama(), tiny.tokenizer())
    manifest = ollama_model(tmp_path / "models", place, file)
    config = json.loads((case.adapter / "adapter_config.json").read_text())
    write_json(case.adapter / "adapter_config.json", {**config, NAMED: str(manifest)})  # as a run saves it
    options = LoadOptions(cache=tmp_path / "cache")
    written = write_adapter(open_model(case.adapter, options=options), tmp_path / "out")
    for name in ("adapter_config.json", "base.json", "README.md"):
        assert str(tmp_path) not in (tmp_path / "out" / name).read_text()
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())[NAMED] == called
    assert any(f"'{called}' is a model of Ollama's" in note and "--base" in note for note in written.notes)
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "models"))
    assert open_model(tmp_path / "out", options=options).base_name == str(manifest)


def ollama_model(store, place, file):
    """A model of a store that is made up: its manifest, and the file as a blob."""
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    (store / "blobs").mkdir(parents=True)
    (store / "blobs" / f"sha256-{digest}").write_bytes(content)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": len(content)}
    manifest = store / "manifests" / place
    manifest.parent.mkdir(parents=True)
    write_json(manifest, {"schemaVersion": 2, "config": layer, "layers": [layer]})
    return manifest
