"""Checkpoints in 8-bit floats as others publish them: read as they are, or widened."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hasten.errors import ModelError
from hasten.kernels.row_scaled.rows import row_scaled_of
from hasten.loading.eight_bit import Fp8Linear
from hasten.loading.model import LoadOptions, load
from hasten.loading.published import published
from support import tiny

IDS = torch.arange(3, 19)[None]
BLOCK = 48
CHANNEL = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}


def compressed(**weights):
    group = {"weights": CHANNEL | weights, "input_activations": {"dynamic": True}, "targets": ["Linear"]}
    return {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": group},
            "ignore": ["lm_head"]}  # fmt: skip


LAYOUTS = {
    "fp8": (
        {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "modules_to_not_convert": ["lm_head"]},
        "block",
    ),
    "fp8-tensor": ({"quant_method": "fp8", "weight_block_size": None}, "tensor"),
    "fbgemm": ({"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"]}, "output"),
    "channel": (compressed(), "output"),
    "tensor": (compressed(strategy="tensor"), "tensor"),
    "block": (compressed(strategy="block", block_structure=[BLOCK, BLOCK]), "block"),
}


def quantized(weight, per):
    """Codes, scales and the values they mean."""
    rows, columns = weight.shape
    side = {"block": (BLOCK, BLOCK), "output": (1, columns), "tensor": (rows, columns)}[per]
    grid = [-(-width // each) for width, each in zip((rows, columns), side, strict=True)]
    padded = torch.zeros(grid[0] * side[0], grid[1] * side[1])
    padded[:rows, :columns] = weight
    blocks = padded.view(grid[0], side[0], grid[1], side[1])
    scale = (blocks.abs().amax((1, 3)) / 448).to(torch.bfloat16).float() * (1 + 2**-7)
    codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
    values = (codes.float() * scale[:, None, :, None]).reshape(padded.shape)[:rows, :columns]
    return codes.view(padded.shape)[:rows, :columns].contiguous(), scale, values


def publish(folder, model, kind, own=None):
    """Save a model as such a checkpoint; what its weights are worth, by name."""
    config, per = LAYOUTS[kind]
    tiny.save_model(folder, model)
    tensors, worth = load_file(folder / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        tensors[name], scale, worth[name] = quantized(tensors[name], per)
        end = "scale_inv" if config["quant_method"] == "fp8" else "scale"
        tensors[f"{name}_{end}"] = (
            scale.view(()) if kind == "fp8-tensor" else scale.view(-1) if per == "tensor" else scale
        )
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    said["quantization_config"] = own or config
    (folder / "config.json").write_text(json.dumps(said), encoding="utf-8")
    return worth


@pytest.fixture
def original():
    return tiny.llama(hidden_size=128, intermediate_size=160)  # blocks of 48: cut short both ways


@pytest.mark.parametrize("kind", list(LAYOUTS))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_codes_and_scales_are_kept_as_they_are(tmp_path, original, kind, dtype):
    worth = publish(tmp_path / "published", original, kind)
    stored = load_file(tmp_path / "published" / "model.safetensors")
    loaded = load(str(tmp_path / "published"), LoadOptions(dtype=dtype))
    layers = {f"{name}.weight": part for name, part in loaded.model.named_modules() if isinstance(part, Fp8Linear)}
    assert set(layers) == set(worth) and type(loaded.model.lm_head) is nn.Linear
    for name, layer in layers.items():
        assert torch.equal(layer.weight, stored[name].view(torch.uint8))
        assert torch.equal(layer.dequantized(torch.float32), worth[name])
    assert "frozen weights stay as they are published: 8-bit floats" in " ".join(loaded.notes)
    if dtype != "float32":
        return
    plain = tiny.llama(hidden_size=128, intermediate_size=160)
    plain.load_state_dict(original.state_dict() | worth)
    torch.testing.assert_close(loaded.model(IDS).logits, plain(IDS).logits)


@pytest.mark.parametrize("kind", ["fp8", "channel"])
def test_the_same_where_8_bits_are_asked_for(tmp_path, original, kind):
    publish(tmp_path / "published", original, kind)
    as_is, asked = (load(str(tmp_path / "published"), LoadOptions(storage=each)).model for each in ("plain", "fp8"))
    assert torch.equal(as_is(IDS).logits, asked(IDS).logits)


@pytest.mark.parametrize("kind", list(LAYOUTS))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_widened_they_are_plain_layers(tmp_path, original, kind, dtype):
    worth = publish(tmp_path / "published", original, kind)
    loaded = load(str(tmp_path / "published"), LoadOptions(widen=True, dtype=dtype))
    assert f"are read into {dtype}" in " ".join(loaded.notes)
    for name, value in worth.items():
        layer = loaded.model.get_submodule(name.removesuffix(".weight"))
        assert type(layer) is nn.Linear and layer.weight.requires_grad
        assert torch.equal(layer.weight, value.to(getattr(torch, dtype)))
    assert not getattr(loaded.model.config, "quantization_config", None) and not loaded.model.is_quantized
    tiny.save_model(tmp_path / "plain", loaded.model)
    again = load(str(tmp_path / "plain"), LoadOptions(dtype=dtype)).model
    assert torch.equal(again(IDS).logits, loaded.model(IDS).logits)


def test_adapters_learn_in_fast_layers_and_are_merged(tmp_path, original):
    from hasten.blocks.apply import apply, remove
    from hasten.lora.attach import attach
    from hasten.lora.merge import merged_state_dict
    from hasten.lora.settings import LoraSettings

    publish(tmp_path / "published", original, "fp8")
    loaded = load(str(tmp_path / "published"), LoadOptions())
    model = attach(loaded.model, LoraSettings(r=4)).model
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    learnt = {name: part for name, part in model.named_parameters() if part.requires_grad}

    def gradients():
        loss = model(input_ids=IDS, labels=IDS).loss
        return loss.detach(), torch.autograd.grad(loss, list(learnt.values()))

    before = gradients()
    assert apply(model).layers == len(original.model.layers)
    torch.testing.assert_close(gradients(), before, rtol=1e-4, atol=1e-6)
    logits = model(input_ids=IDS).logits.detach()
    remove(model)
    plain = tiny.llama(hidden_size=128, intermediate_size=160)
    plain.load_state_dict(merged_state_dict(model, torch.float32))
    torch.testing.assert_close(plain(IDS).logits, logits, rtol=1e-4, atol=1e-5)


def test_products_in_8_bits_are_refused_for_blocks_alone(tmp_path, original):
    from hasten.blocks.fp8 import refusal

    for kind in ("fp8", "channel"):
        publish(tmp_path / kind, original, kind)
    parts = {kind: row_scaled_of(load(str(tmp_path / kind), LoadOptions()).model.model.layers[0].mlp.up_proj)
             for kind in ("fp8", "channel")}  # fmt: skip
    assert "a scale for each block" in refusal((parts["fp8"],), adapted=True)
    assert refusal((parts["channel"],), adapted=True) is None
    assert parts["fp8"].blocks == (BLOCK, BLOCK) and parts["channel"].blocks is None


@pytest.mark.parametrize("storage", ["int8", "nf4"])
def test_they_are_not_quantized_again(tmp_path, original, storage):
    publish(tmp_path / "published", original, "channel")
    with pytest.raises(ModelError, match="in 8-bit floats already.*load_in_8bit False"):
        load(str(tmp_path / "published"), LoadOptions(storage=storage))


@pytest.mark.parametrize(
    "own",
    [
        compressed(num_bits=4, type="int"),
        compressed(strategy="group"),
        compressed() | {"config_groups": {}},
        compressed(symmetric=False),
        compressed() | {"sparsity_config": {"format": "sparse-24-bitmask"}},
    ],
)
def test_other_layouts_of_compressed_tensors(own):
    with pytest.raises(ModelError, match=r"org/name: its weights are kept by compressed-tensors \(.*original 16-bit"):
        published("org/name", own)


def test_which_layers_are_plain():
    layout = published("", compressed() | {"ignore": ["lm_head", "re:.*gate$", "model.layers.1.mlp"]})
    for name in ("lm_head", "model.layers.0.mlp.gate", "model.layers.1.mlp.up_proj"):
        assert layout.leaves(name)
    for name in ("model.layers.0.mlp.gate_proj", "model.layers.11.mlp.up_proj", "model.layers.1.mlp_two.up_proj"):
        assert not layout.leaves(name)


def test_scales_that_are_missing_or_belong_to_nothing(tmp_path, original):
    folder = tmp_path / "lacking"
    publish(folder, original, "channel")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight_scale"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"'model.layers.1.mlp.up_proj' has no scales.*original 16-bit"):
        load(str(folder), LoadOptions())
    scale, key = "model.layers.1.mlp.up_proj.weight_scale", "model.layers.1.mlp.up_proj.weight"
    weight = tensors.pop(key)
    tensors[scale] = torch.ones(160, 1)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"up_proj.weight: the checkpoint has none.*160 x 128 in 8 bits"):
        load(str(folder), LoadOptions())
    save_file(tensors | {key: weight[:100].clone()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"up_proj.weight: 100 x 128 codes. This layer has 160 x 128"):
        load(str(folder), LoadOptions())
    save_file(tensors | {key: weight, scale: torch.ones(7, 1)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"layers.1.mlp.up_proj: its scales are 7 x 1. A weight of 160 x 128 has one"):
        load(str(folder), LoadOptions())
    publish(
        tmp_path / "more", original, "channel", compressed() | {"ignore": ["lm_head", "model.layers.0.mlp.up_proj"]}
    )
    with pytest.raises(ModelError, match=r"'model.layers.0.mlp.up_proj' has scales, but is no linear layer"):
        load(str(tmp_path / "more"), LoadOptions())


def test_keywords_that_are_fields_of_the_configuration(tmp_path, original):
    publish(tmp_path / "published", original, "fp8")
    hf = {"rms_norm_eps": 1e-3, "attn_implementation": "eager"}
    config = load(str(tmp_path / "published"), LoadOptions(hf=hf)).model.config
    assert config.rms_norm_eps == 1e-3 and config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("changes", "peft"),
    [
        ({}, {"use_dora": True}),
        ({}, {"init_lora_weights": "orthogonal"}),
        ({"modules_to_save": ["down_proj"], "targets": ["q_proj"]}, {}),
        ({"targets": ["q_proj"]}, {"target_parameters": ["mlp.up_proj.weight"]}),
    ],
)
def test_what_works_on_weights_is_refused_on_codes(tmp_path, original, changes, peft):
    from hasten.errors import ConfigError
    from hasten.lora.attach import attach
    from hasten.lora.settings import LoraSettings

    publish(tmp_path / "published", original, "channel")
    for storage, folder in (("plain", tmp_path / "published"), ("fp8", tiny.save_model(tmp_path / "plain", original))):
        model = load(str(folder), LoadOptions(storage=storage)).model
        with pytest.raises(ConfigError, match="which is kept in 8-bit floats.*load_in_16bit"):
            attach(model, LoraSettings(r=4, **changes), **peft)
    widened = load(str(tmp_path / "published"), LoadOptions(widen=True)).model
    assert attach(widened, LoraSettings(r=4, **changes), **peft).model is not None


def experts():
    from transformers import Qwen3MoeConfig

    return tiny.of_config(
        Qwen3MoeConfig(vocab_size=128, hidden_size=96, intermediate_size=96, moe_intermediate_size=96, head_dim=24,
                       num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, num_experts=2,
                       num_experts_per_tok=1)
    )  # fmt: skip


def test_experts_are_widened_by_transformers(tmp_path):
    own = LAYOUTS["fp8"][0] | {
        "modules_to_not_convert": ["lm_head", "model.layers.0.mlp.gate", "model.layers.1.mlp.gate"]
    }
    worth = publish(tmp_path / "experts", experts(), "fp8", own)
    loaded = load(str(tmp_path / "experts"), LoadOptions())
    assert "are read into float32 (experts are trained on in 16 bits only)" in " ".join(loaded.notes)
    name = "model.layers.1.mlp.experts"
    own = loaded.model.get_submodule(name)
    for number in range(2):
        parts = {kind: worth[f"{name}.{number}.{kind}_proj.weight"] for kind in ("gate", "up", "down")}
        torch.testing.assert_close(own.gate_up_proj[number].data, torch.cat((parts["gate"], parts["up"])))
        torch.testing.assert_close(own.down_proj[number].data, parts["down"])
    key = "model.layers.0.self_attn.k_proj.weight"
    torch.testing.assert_close(loaded.model.get_parameter(key).data, worth[key])


def test_experts_in_other_layouts_and_blocks_that_are_cut_short_beside_them(tmp_path):
    publish(tmp_path / "channel", experts(), "channel")
    with pytest.raises(ModelError, match="a mixture of experts whose weights are kept by compressed-tensors"):
        load(str(tmp_path / "channel"), LoadOptions())
    own = LAYOUTS["fp8"][0] | {"weight_block_size": [80, 80]}
    publish(tmp_path / "cut", experts(), "fp8", own)
    with pytest.raises(ModelError, match="in blocks of 80 x 80.*beside experts are read where they are whole"):
        load(str(tmp_path / "cut"), LoadOptions())


def test_an_adapter_on_such_a_checkpoint_says_it_too(tmp_path, original):
    from hasten.lora.attach import attach
    from hasten.lora.save import save_adapter
    from hasten.lora.settings import LoraSettings

    publish(tmp_path / "published", original, "fp8")
    loaded = load(str(tmp_path / "published"), LoadOptions())
    adapted = attach(loaded.model, LoraSettings(r=2)).model
    save_adapter(adapted, loaded.tokenizer, tmp_path / "adapter", str(tmp_path / "published"))
    assert any("as they are published" in note for note in load(str(tmp_path / "adapter"), LoadOptions()).notes)


def test_such_a_model_is_not_saved_as_it_is(tmp_path, original):
    publish(tmp_path / "published", original, "fp8")
    with pytest.raises((ValueError, RuntimeError), match=r"(?i)seriali|not support"):
        load(str(tmp_path / "published"), LoadOptions()).model.save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved").rglob("*.safetensors"))
