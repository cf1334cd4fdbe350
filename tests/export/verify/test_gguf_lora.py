"""Adapters' GGUF files read back: what PEFT would add, and every way in which it could be something else."""

import json

import pytest
import torch
from gguf import GGUFReader
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from hasten.export.gguf.lora import write_adapter
from hasten.export.verify.gguf_lora import compare_adapter
from hasten.export.weights import PlainFolder
from support import tiny
from support.gguf_judges import family_folder

CASES = {
    "plain": ({"r": 8, "lora_alpha": 32}, "equal", "rank 8, alpha 32"),
    "rank-stabilised": ({"r": 16, "lora_alpha": 16, "use_rslora": True}, "equal", "rank 16, alpha 64"),
    "by module": (
        {"r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"v_proj": 5}},
        "within",
        "rank 3 to 4, alpha 8; 2 have a factor of their own in B",
    ),
}


def adapted(model, folder, **settings):
    torch.manual_seed(1)
    config = LoraConfig(target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False, **settings)
    get_peft_model(model, config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_what_was_written_is_what_peft_adds(case, tiny_model_folder, tmp_path):
    settings, state, said = CASES[case]
    base, adapter = PlainFolder(tiny_model_folder), adapted(tiny.llama(), tmp_path / "adapter", **settings)
    write_adapter(adapter, base, tmp_path / "x.gguf")
    check = compare_adapter(tmp_path / "x.gguf", adapter, base.config)
    assert check.state == state and check.said.startswith(f"12 matrices of {said}"), check


@pytest.mark.parametrize("model_type", ["gemma3_text", "mistral", "qwen2", "qwen3", "mixtral"])
def test_families(model_type, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = family_folder(tmp_path / "model", model_type)
    base, model = PlainFolder(folder), AutoModelForCausalLM.from_pretrained(folder)
    adapter = adapted(model, tmp_path / "adapter", r=4, lora_alpha=4)
    write_adapter(adapter, base, tmp_path / "x.gguf")
    check = compare_adapter(tmp_path / "x.gguf", adapter, base.config)
    assert check.state == "equal", check


def test_mixtral_s_router_has_a_name_that_llama_has_not(tmp_path):
    base, adapter = PlainFolder(family_folder(tmp_path / "model", "mixtral")), tmp_path / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["gate", "q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    matrices = {}
    for module in ("block_sparse_moe.gate", "self_attn.q_proj"):
        rows, columns = base.shapes[f"model.layers.1.{module}.weight"]
        for end, shape in (("A", (2, columns)), ("B", (rows, 2))):
            matrices[f"base_model.model.model.layers.1.{module}.lora_{end}.weight"] = torch.randn(shape)
    save_file(matrices, adapter / "adapter_model.safetensors")
    write_adapter(adapter, base, tmp_path / "x.gguf")
    check = compare_adapter(tmp_path / "x.gguf", adapter, base.config)
    assert check.state == "equal" and check.said.startswith("4 matrices"), check


@pytest.fixture
def case(tiny_model_folder, tmp_path):
    base, adapter = PlainFolder(tiny_model_folder), adapted(tiny.llama(), tmp_path / "adapter", r=4, lora_alpha=16)
    write_adapter(adapter, base, tmp_path / "x.gguf")
    return tmp_path / "x.gguf", adapter, dict(base.config)


def said(case, **config):
    check = compare_adapter(case[0], case[1], {**case[2], **config})
    assert check.state == "wrong", check
    return check.said


def test_another_order_of_rows(case):
    assert "B of 'model.layers.0.self_attn.q_proj', scaled, has " in said(case, num_attention_heads=2)


@pytest.mark.parametrize("name", ["lora_a", "lora_b"])
def test_another_value(case, name):
    reader = GGUFReader(case[0], "r+")
    values = next(tensor for tensor in reader.tensors if tensor.name == f"blk.1.attn_v.weight.{name}").data
    values[2, 1] *= 1.00001
    del reader, values
    text = said(case)
    assert text.startswith(f"{name[-1].upper()} of 'model.layers.1.self_attn.v_proj'") and " 1 other values of " in text


def test_other_facts(case):
    assert said(case, model_type="qwen2") == "general.architecture is 'llama' instead of 'qwen2'"
    assert said(case, model_type="gpt_neox") == "general.architecture is 'llama' instead of None"
    reader = GGUFReader(case[0], "r+")
    reader.fields["adapter.lora.alpha"].parts[-1][0] = 17.0
    del reader
    assert "scaled, has " in said(case)


def test_other_names(case, tmp_path):
    content = case[0].read_bytes()
    case[0].write_bytes(content.replace(b"blk.1.attn_v.weight.lora", b"blk.7.attn_v.weight.lora"))
    assert said(case) == "'model.layers.1.self_attn.v_proj' is missing"
    case[0].write_bytes(content.replace(b"blk.1.attn_v.weight.lora", b"blk.1.attn_x.weight.lora"))
    assert said(case) == "'blk.1.attn_x.weight.lora_a' is no matrix of a weight"
    case[0].write_bytes(content)
    file = case[1] / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_rslora": True}))
    assert "scaled, has " in said(case)
