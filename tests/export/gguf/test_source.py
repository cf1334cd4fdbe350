"""A model by GGUF's names: everything has a place, values are arranged as the family's files have them."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hasten.errors import CapabilityError, ModelError
from hasten.export.gguf.source import Source, permuted
from hasten.export.weights import PlainFolder
from support import tiny
from support.gguf_judges import family_folder


class Made:
    """Weights that were never in files."""

    def __init__(self, config, shapes):
        self.config, self.shapes, self.folder = config, shapes, "made"

    def read(self, name):
        return torch.zeros(self.shapes[name])


def config_of(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


def change(folder, edit):
    file = folder / "model.safetensors"
    tensors = load_file(str(file))
    edit(tensors)
    save_file(tensors, str(file))
    return folder


def test_rows_of_heads_become_pairs():
    rows = torch.arange(12).view(12, 1)
    assert permuted(rows, 2).view(-1).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    assert permuted(torch.arange(6), 1).tolist() == [0, 3, 1, 4, 2, 5]


def test_a_norm_that_is_stored_minus_one(tmp_path):
    folder = family_folder(tmp_path, "gemma3_text")
    source = Source(PlainFolder(folder))
    entry = next(each for each in source.entries if each.tensor.name == "blk.1.attn_k_norm.weight")
    stored = load_file(str(folder / "model.safetensors"))["model.layers.1.self_attn.k_norm.weight"]
    assert np.array_equal(source.read(entry), stored.float().numpy() + 1)
    assert "output.weight" not in {each.tensor.name for each in source.entries}


def test_experts_are_one_tensor(tmp_path):
    folder = family_folder(tmp_path, "qwen3_moe")
    source, stored = Source(PlainFolder(folder)), load_file(str(folder / "model.safetensors"))
    entry = next(each for each in source.entries if each.tensor.name == "blk.0.ffn_down_exps.weight")
    wanted = [stored[f"model.layers.0.mlp.experts.{number}.down_proj.weight"].float() for number in range(3)]
    assert entry.tensor.shape == (3, 40, 24) and np.array_equal(source.read(entry), torch.stack(wanted).numpy())
    assert source.model.experts == 3
    change(folder, lambda tensors: tensors.pop("model.layers.0.mlp.experts.1.down_proj.weight"))
    with pytest.raises(ModelError, match=r"one of 2 experts.*config.json says 3"):
        _ = Source(PlainFolder(folder)).entries


def test_experts_are_in_order_whatever_the_files_order():
    config = {"model_type": "mixtral", "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    config |= {"hidden_size": 8, "num_local_experts": 11, "tie_word_embeddings": True}
    names = sorted(f"model.layers.0.block_sparse_moe.experts.{number}.w1.weight" for number in range(11))
    shapes = {name: (4, 8) for name in names} | {"model.embed_tokens.weight": (9, 8), "model.norm.weight": (8,)}
    source = Source(Made(config, shapes))
    entry = next(each for each in source.entries if each.parts)
    assert [name.split(".")[5] for name in entry.parts] == [str(number) for number in range(11)]
    assert source.rows == 9
    assert [tensor.name for tensor in source.by_layers()][-1] == "blk.0.ffn_gate_exps.weight"


def test_rules_for_mixed_types_know_the_architecture(tmp_path):
    source = Source(PlainFolder(family_folder(tmp_path, "qwen2", num_hidden_layers=80, num_key_value_heads=6)))
    assert source.model.arch == "qwen2"
    assert source.model.is_70b  # of 80 layers, also without shared heads


def test_a_family_without_a_form(tiny_model_folder):
    config_of(tiny_model_folder, model_type="mamba")
    with pytest.raises(CapabilityError, match=r"GGUF of model_type 'mamba'.*gemma3_text, llama.*Hugging Face or vLLM"):
        Source(PlainFolder(tiny_model_folder))


def test_a_switch_that_llama_cpp_takes_for_granted(tmp_path):
    folder = config_of(family_folder(tmp_path, "qwen3_moe"), norm_topk_prob=False)
    with pytest.raises(CapabilityError, match=r"'norm_topk_prob' of config.json: False. .*granted that it is True"):
        Source(PlainFolder(folder))


POSITIONS = {
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    "longrope": {"long_factor": [2.0] * 4, "short_factor": [1.0] * 4, "original_max_position_embeddings": 32},
    "linear": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 24},
}


@pytest.mark.parametrize(
    ("model_type", "held"),
    [
        ("llama", {"llama3", "linear", "yarn"}),
        ("mistral", {"llama3", "linear", "yarn"}),
        ("qwen2", {"linear", "yarn"}),
        ("qwen3", {"linear", "yarn"}),
        ("gemma3_text", {"linear", "yarn"}),
        ("phi3", {"longrope"}),
    ],
)
def test_positions_that_the_architecture_has(model_type, held):
    config = {"model_type": model_type, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
    config |= {"head_dim": 8, "query_pre_attn_scalar": 8}
    for kind, settings in POSITIONS.items():
        rope = {"rope_type": kind, "rope_theta": 1e4, **settings}
        if kind in held:
            assert Source(Made({**config, "rope_parameters": rope}, {})).rope.kind == kind
            continue
        with pytest.raises(
            CapabilityError, match=rf"rope_type: '{kind}'. llama.cpp's \w+ has positions of these kinds"
        ):
            Source(Made({**config, "rope_parameters": rope}, {}))


@pytest.mark.parametrize(
    ("layers", "width", "scalar", "taken"),
    [(26, 256, 256, 256), (26, 256, None, 256), (26, 256, 168, 256), (26, 128, None, 128), (62, 128, 168, 168),
     (62, 128, 128, 168)],
)  # fmt: skip
def test_gemmas_scale_of_attention(layers, width, scalar, taken):
    config = {"model_type": "gemma3_text", "num_hidden_layers": layers, "num_attention_heads": 32, "head_dim": width}
    config |= {"hidden_size": 5376} | ({} if scalar is None else {"query_pre_attn_scalar": scalar})
    if (scalar or 256) == taken:
        Source(Made(config, {}))
        return
    with pytest.raises(CapabilityError, match=rf"query_pre_attn_scalar: {scalar or 256}. llama.cpp takes {taken}"):
        Source(Made(config, {}))


def test_long_contexts_need_their_factors():
    config = {"model_type": "phi3", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
    config |= {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}
    with pytest.raises(ModelError, match=r"rope_parameters.long_factor: missing.*'longrope' need it.*Copy config.json"):
        Source(Made(config, {}))


def test_weights_without_a_place(tiny_model_folder):
    change(tiny_model_folder, lambda tensors: tensors.update({"model.odd.weight": torch.ones(2)}))
    with pytest.raises(ModelError, match=r"'model.odd.weight': no tensor of GGUF's llama.*of that family"):
        _ = Source(PlainFolder(tiny_model_folder)).entries


def test_two_weights_with_one_place(tiny_model_folder):
    change(tiny_model_folder, lambda tensors: tensors.update({"transformer.wte.weight": torch.ones(2)}))
    with pytest.raises(ModelError, match=r"'transformer.wte.weight': a second 'token_embd.weight'.*Remove one"):
        _ = Source(PlainFolder(tiny_model_folder)).entries


def test_weights_that_are_missing(tiny_model_folder):
    change(tiny_model_folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"1 tensors are missing \(first: blk.1.ffn_up.weight\).*Copy its weights"):
        _ = Source(PlainFolder(tiny_model_folder)).entries


def test_an_untied_model_without_a_head(tiny_model_folder):
    config_of(tiny_model_folder, tie_word_embeddings=False)
    with pytest.raises(ModelError, match=r"first: output.weight"):
        _ = Source(PlainFolder(tiny_model_folder)).entries


def test_a_tied_models_second_copy_is_left_out(tmp_path):
    folder = tiny.save_model(tmp_path, tiny.llama(tied=False))
    assert "output.weight" in {each.tensor.name for each in Source(PlainFolder(folder)).entries}
    config_of(folder, tie_word_embeddings=True)
    assert "output.weight" not in {each.tensor.name for each in Source(PlainFolder(folder)).entries}
