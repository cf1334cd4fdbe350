"""Every family's and every type's weights, bit by bit, and back again."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from hasten.errors import ModelError, StorageError
from hasten.export.gguf.source import Source
from hasten.export.weights import PlainFolder
from hasten.families.base import family_of
from hasten.loading import gguf, gguf_tensors
from hasten.loading.gguf_config import configuration
from hasten.loading.gguf_file import open_gguf
from hasten.loading.gguf_names import FORMS
from support import gguf_models

FAMILIES = {
    "llama": {},
    "llama with biases": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"head_dim": 32},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 96},
    "phi3": {"sliding_window": 9, "original_max_position_embeddings": 64},
    "gemma3_text": {"head_dim": 96, "query_pre_attn_scalar": 96, "sliding_window": 8, "num_hidden_layers": 7},
}
TYPES = (
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
)


def made(family):
    return gguf_models.model(family.split()[0], **FAMILIES[family])


def tensors(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


def logits(folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.arange(3, 33).unsqueeze(0)).logits


@pytest.mark.parametrize(("family", "kind"), [*((family, "F16") for family in FAMILIES), ("gemma3_text", "BF16")])
def test_weights_and_logits_of_every_family(family, kind, tmp_path):
    model = made(family)
    gguf_models.write_model(tmp_path / "x.gguf", model, kind=kind)
    folder = gguf.model_folder(tmp_path / "x.gguf", tmp_path / "cache")
    found, expected = tensors(folder), model.state_dict()
    if model.config.tie_word_embeddings:
        del expected["lm_head.weight"]
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name].float(), tensor), name
    with torch.no_grad():
        assert torch.equal(logits(folder), model(torch.arange(3, 33).unsqueeze(0)).logits)


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_gives_the_values_that_the_gguf_package_decodes(kind, tmp_path):
    pytest.importorskip("libggml", reason="ggml's encoders (libggml-python) are not installed")
    model = made("llama")
    written = gguf_models.write_model(tmp_path / "x.gguf", model, kind=kind)
    folder = gguf.model_folder(tmp_path / "x.gguf", tmp_path / "cache")
    source = Source(PlainFolder(folder))  # puts queries and keys back as the file has them
    for entry in source.entries:
        assert np.array_equal(source.read(entry), written[entry.tensor.name]), entry.name
    stored = tensors(folder)
    assert {entry.name for entry in source.entries} == stored.keys()
    with torch.no_grad():  # the reference: the live model with the decoded weights
        for name, parameter in model.named_parameters():
            parameter.copy_(stored[name])
        assert torch.equal(logits(folder), model(torch.arange(3, 33).unsqueeze(0)).logits)


@pytest.mark.parametrize("family", [name for name in FAMILIES if family_of(name.split()[0]).gguf])
def test_f16_comes_back_bit_by_bit(family, tmp_path):
    model = made(family)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((torch.randn_like(parameter) * 0.1).half())
    written = gguf_models.write_model(tmp_path / "x.gguf", model, kind="F16")
    source = Source(PlainFolder(gguf.model_folder(tmp_path / "x.gguf", tmp_path / "cache")))
    assert {entry.tensor.name for entry in source.entries} == written.keys()
    for entry in source.entries:
        assert np.array_equal(source.read(entry), written[entry.tensor.name]), entry.name


@pytest.mark.parametrize(("kind", "kept"), [("F16", {"F16"}), ("BF16", {"BF16"}), ("F32", {"BF16"}), ("Q4_0", {"F32"})])
def test_the_narrowest_type_that_loses_nothing(kind, kept, tmp_path):
    gguf_models.write_model(tmp_path / "x.gguf", made("llama"), kind=kind)
    folder = gguf.model_folder(tmp_path / "x.gguf", tmp_path / "cache")
    found = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors(folder).values()}
    assert found == {gguf_tensors.TORCH[each] for each in kept}
    assert json.loads((folder / "config.json").read_text())["dtype"] in found


def test_float32_values_of_more_digits_stay_float32(tmp_path):
    model = made("llama")
    with torch.no_grad():
        model.model.norm.weight[3] = 1 / 3
        model.model.layers[0].mlp.up_proj.weight[5, 7] = 1 / 3
    gguf_models.write_model(tmp_path / "x.gguf", model, kind="F16")
    found = tensors(gguf.model_folder(tmp_path / "x.gguf", tmp_path / "cache"))
    assert found["model.norm.weight"].dtype == torch.float32
    assert found["model.norm.weight"][3] == torch.tensor(1 / 3)
    gguf_models.write_model(tmp_path / "y.gguf", model, kind="F32")
    found = tensors(gguf.model_folder(tmp_path / "y.gguf", tmp_path / "cache"))
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert found["model.layers.0.mlp.up_proj.weight"][5, 7] == torch.tensor(1 / 3)


def test_large_models_are_sharded(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_tensors, "_SHARD", 300_000)
    monkeypatch.setattr(gguf_tensors, "_VALUES", 1000)
    model = made("llama")
    gguf_models.write_model(tmp_path / "x.gguf", model, kind="Q8_0")
    folder = gguf.model_folder(tmp_path / "x.gguf", tmp_path / "cache")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    assert index["weight_map"].keys() == tensors(folder).keys() == model.state_dict().keys()
    assert index["metadata"]["total_size"] == sum(each.nbytes for each in tensors(folder).values())
    assert logits(folder).isfinite().all()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_only_blocks_of_rows_are_in_memory(kind, tmp_path, monkeypatch):
    model = made("llama with biases")
    gguf_models.write_model(tmp_path / "x.gguf", model, kind=kind)
    file = open_gguf(tmp_path / "x.gguf")
    form = FORMS[file.arch]
    stored = gguf_tensors.plan(file, form, configuration(file, form))
    whole = [np.concatenate([block.reshape(-1) for block in gguf_tensors.values(each)]) for each in stored]
    monkeypatch.setattr(gguf_tensors, "_VALUES", 1000)
    seen = []
    holds = gguf_tensors._holds
    monkeypatch.setattr(gguf_tensors, "_holds", lambda block, kept: seen.append(block.size) or holds(block, kept))
    assert gguf_tensors.plan(file, form, configuration(file, form)) == stored
    assert seen and max(seen) <= 1000
    for each, expected in zip(stored, whole, strict=True):
        blocks = list(gguf_tensors.values(each))
        assert max(block.size for block in blocks) <= 1000, each.name
        assert np.array_equal(np.concatenate([block.reshape(-1) for block in blocks]), expected), each.name


def test_a_disk_without_room(tmp_path, monkeypatch):
    gguf_models.write_model(tmp_path / "x.gguf", made("llama"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(StorageError, match=r"cache: 0\.0 MB are free.*takes \d+\.\d MB.*Free some space"):
        gguf.model_folder(tmp_path / "x.gguf", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def refused(path, tmp_path, match):
    with pytest.raises(ModelError, match=match):
        gguf.model_folder(path, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_tensor_too_many(tmp_path):
    extra = {"blk.0.attn_sinks.weight": np.ones(4, np.float32)}
    gguf_models.write_model(tmp_path / "x.gguf", made("llama"), extra=extra)
    refused(tmp_path / "x.gguf", tmp_path, "tensor 'blk.0.attn_sinks.weight'.*would change the model.*Hugging Face")


def test_a_tensor_too_few(tmp_path):
    gguf_models.write_model(tmp_path / "x.gguf", made("llama"), fields={"llama.block_count": 3})
    refused(tmp_path / "x.gguf", tmp_path, r"llama\.block_count = 3\. The file has tensors of 2 layers")
    content = (tmp_path / "x.gguf").read_bytes()
    (tmp_path / "y.gguf").write_bytes(content.replace(b"blk.1.ffn_up", b"blk.2.ffn_up"))
    refused(tmp_path / "y.gguf", tmp_path, r"9 tensors differ.*model\.layers\.1\..* is missing.*completely or not")


def test_a_tensor_of_another_shape(tmp_path):
    gguf_models.write_model(tmp_path / "x.gguf", made("llama"), fields={"llama.feed_forward_length": 500})
    refused(tmp_path / "x.gguf", tmp_path, r"6 tensors differ.*\(512, 256\), not \(500, 256\)")


def test_a_type_that_cannot_be_decoded(tmp_path, monkeypatch):
    gguf_models.write_model(tmp_path / "x.gguf", made("llama"), kind="Q8_0")

    def refuse(*_):
        raise NotImplementedError("Dequantization for Q8_0 is not yet implemented")

    monkeypatch.setattr("gguf.quants.dequantize", refuse)
    refused(tmp_path / "x.gguf", tmp_path, "of type Q8_0.*cannot decode.*another type")
