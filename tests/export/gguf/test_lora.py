"""Adapters as GGUF files: names, shapes and scale as llama.cpp takes them; what it cannot take is refused."""

import json
import math

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from peft import LoraConfig, get_peft_model

from hasten.errors import CapabilityError, ModelError
from hasten.export.gguf.lora import write_adapter
from hasten.export.gguf.write import write_gguf
from hasten.export.weights import PlainFolder
from support import judges, tiny
from support.gguf_judges import WIDE, family_folder, greedy, greedy_here, serving

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]


def adapted(model, folder, *, targets=("q_proj", "v_proj"), size=0.3, **settings):
    """A random adapter, saved, and its live model."""
    torch.manual_seed(1)
    config = LoraConfig(target_modules=list(targets), init_lora_weights=False, **settings)
    live = get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in live.named_parameters():
            if "lora_B" in name:
                parameter.mul_(size)
    live.save_pretrained(folder)
    return live


def added(file, name, heads=None):
    """What llama.cpp adds to a weight: alpha over rank times B A, in Hugging Face's order of rows."""
    reader = GGUFReader(file)
    alpha = reader.fields["adapter.lora.alpha"].contents()
    a, b = ({each.name: each.data for each in reader.tensors}[f"{name}.lora_{end}"] for end in "ab")
    product = np.array(b) @ np.array(a) * (alpha / a.shape[0])
    if heads is None:
        return product
    return product.reshape(heads, -1, 2, product.shape[1]).swapaxes(1, 2).reshape(product.shape)


SCALES = {
    "alpha is not r": ({"r": 8, "lora_alpha": 32}, 32.0),
    "rank-stabilised": ({"r": 16, "lora_alpha": 16, "use_rslora": True}, 64.0),
    "by module": ({"r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 5}}, 8.0),
    "both": ({"r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 2}, "use_rslora": True}, 16.0),
}


@pytest.mark.parametrize("case", SCALES)
def test_what_is_added_is_what_peft_adds(case, tiny_model_folder, tmp_path):
    settings, alpha = SCALES[case]
    live = adapted(tiny.llama(), tmp_path / "adapter", targets=ALL, **settings)
    written = write_adapter(tmp_path / "adapter", PlainFolder(tiny_model_folder), tmp_path / "x.gguf")
    assert math.isclose(written.alpha, alpha) and len(written.tensors) == 10
    for name, own, heads in (("q_proj", "attn_q", 4), ("k_proj", "attn_k", 2), ("v_proj", "attn_v", None)):
        module = live.get_submodule(f"base_model.model.model.layers.1.self_attn.{name}")
        wanted = module.get_delta_weight("default").detach().numpy()
        np.testing.assert_allclose(added(written.path, f"blk.1.{own}.weight", heads), wanted, rtol=1e-5, atol=1e-6)


def test_names_shapes_and_facts(tiny_model_folder, tmp_path):
    adapted(tiny.llama(), tmp_path / "adapter", r=4, lora_alpha=16)
    written = write_adapter(
        tmp_path / "adapter", PlainFolder(tiny_model_folder), tmp_path / "x.gguf", facts={"general.name": "mine"}
    )
    reader = GGUFReader(written.path)
    said = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert said == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "general.name": "mine",
        "adapter.type": "lora",
        "adapter.lora.alpha": 16.0,
    }
    shapes = {each.name: tuple(int(size) for size in reversed(each.shape)) for each in reader.tensors}
    assert shapes["blk.0.attn_q.weight.lora_a"] == (4, 64) and shapes["blk.0.attn_v.weight.lora_b"] == (32, 4)
    assert len(shapes) == 8 and written.bytes == written.path.stat().st_size
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["x.gguf"]


def refused(folder, base, tmp_path):
    with pytest.raises(CapabilityError) as caught:
        write_adapter(folder, base, tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()
    return str(caught.value)


def test_what_is_merged_instead(tiny_model_folder, tmp_path):
    base, untied = PlainFolder(tiny_model_folder), tiny.llama(tied=False)
    adapted(untied, tmp_path / "head", r=4, modules_to_save=["lm_head"])
    assert "lm_head" in (text := refused(tmp_path / "head", base, tmp_path)) and "Merge it instead" in text
    adapted(tiny.llama(), tmp_path / "dora", r=4, use_dora=True)
    assert "use_dora" in (text := refused(tmp_path / "dora", base, tmp_path)) and "Merge it instead" in text
    adapted(tiny.llama(), tmp_path / "embedding", r=4, targets=["embed_tokens"])
    assert "embed_tokens" in (text := refused(tmp_path / "embedding", base, tmp_path)) and "Merge it" in text
    adapted(tiny.llama(), tmp_path / "tied", r=4, targets=["lm_head"])
    assert "'lm_head'" in (text := refused(tmp_path / "tied", base, tmp_path)) and "Merge it instead" in text


def test_an_adapter_that_began_inside_its_base(tiny_model_folder, tmp_path):
    adapted(tiny.llama(), tmp_path / "adapter", r=4)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "init_lora_weights": "pissa"}))
    text = refused(tmp_path / "adapter", PlainFolder(tiny_model_folder), tmp_path)
    assert "began inside the weights" in text and "plain adapter" in text


def test_an_adapter_of_another_base(tmp_path):
    adapted(tiny.llama(hidden_size=80), tmp_path / "adapter", r=4)
    base = PlainFolder(tiny.save_model(tmp_path / "base"))
    with pytest.raises(ModelError, match=r"q_proj': matrices of \(80, 4\) and \(4, 80\) for a weight of \(64, 64\)"):
        write_adapter(tmp_path / "adapter", base, tmp_path / "x.gguf")
    adapted(tiny.llama(num_hidden_layers=3), tmp_path / "deeper", r=4)
    assert "layers.2." in refused(tmp_path / "deeper", base, tmp_path)


def test_files_that_are_missing_or_broken(tiny_model_folder, tmp_path):
    base = PlainFolder(tiny_model_folder)
    live = adapted(tiny.llama(), tmp_path / "adapter", r=4)
    with torch.no_grad():
        live.get_parameter("base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight")[0, 0] = torch.inf
    live.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"q_proj': it holds NaN or infinity.*Train again"):
        write_adapter(tmp_path / "adapter", base, tmp_path / "x.gguf")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"damaged.*Copy it again"):
        write_adapter(tmp_path / "adapter", base, tmp_path / "x.gguf")
    weights.unlink()
    with pytest.raises(ModelError, match=r"it is not there.*Save the adapter again"):
        write_adapter(tmp_path / "adapter", base, tmp_path / "x.gguf")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["alpha is not r", "rank-stabilised"])
def test_llama_cpp_answers_as_peft(case, tmp_path):
    judges.package("xllamacpp")
    from transformers import AutoModelForCausalLM

    folder = family_folder(tmp_path / "model", "llama", **WIDE)
    file = write_gguf(PlainFolder(folder), {"f32": tmp_path / "base.gguf"})["f32"].path
    live = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = [5, 20, 33, 47, 60]
    before = greedy_here(live.eval(), ids, [tiny.EOS])
    live = adapted(live, tmp_path / "adapter", targets=[*ALL, "lm_head"], size=0.02, **SCALES[case][0])
    written = write_adapter(tmp_path / "adapter", PlainFolder(folder), tmp_path / "adapter.gguf")
    wanted = greedy_here(live, ids, [tiny.EOS])
    assert wanted != before
    with serving(file, written.path) as post:
        assert greedy(post, ids) == wanted
