"""Adapters that begin as what 4 bits lost, and what becomes of them on 4-bit and on 16-bit weights."""

import copy
import json

import pytest
import torch
from peft import PeftModel
from torch import nn

from hasten.blocks.apply import apply
from hasten.errors import ConfigError, TrainingError
from hasten.loading.beginning import beginning_of
from hasten.loading.model import LoadOptions, load
from hasten.lora.attach import attach
from hasten.lora.loftq import leading_part
from hasten.lora.merge import merged_state_dict, weights_in_4_bits
from hasten.lora.originals import Originals
from hasten.lora.save import refuse_untouched, save_adapter
from hasten.lora.settings import LoraSettings
from support import tiny

pytest.importorskip("bitsandbytes", reason="4-bit weights are bitsandbytes'")

IDS = torch.arange(3, 19)[None]
# Logits of about 1, float32 sums of some hundred products that are taken in another order: 2^-24 * 100.
ROUNDING = 1e-5
WITHOUT = "as a plain one of twice the rank"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("loftq") / "model")


@pytest.fixture(scope="module")
def four_bit(folder):
    return load(str(folder), LoadOptions(storage="nf4"))


@pytest.fixture
def base(four_bit):
    model = copy.deepcopy(four_bit.model)
    model.name_or_path = four_bit.model.name_or_path
    return model


def begun(base, r=4, **changes):
    """Scales of 2, of 8/3 in up_proj, of 4 with rslora: none is 1."""
    return attach(base, LoraSettings(r=r, alpha=2 * r, init="loftq", **changes), rank_pattern={"up_proj": 3})


def learn(model):
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.05 * torch.randn_like(parameter)


def adapted(model):
    return {name: module for name, module in model.get_base_model().named_modules() if hasattr(module, "lora_A")}


def delta(module):
    return module.get_delta_weight("default").detach()


def dequantized(module):
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(module.base_layer.weight.data, module.base_layer.weight.quant_state)


def originals(model):
    found = Originals.of(model.get_base_model(), weights_in_4_bits(model))
    assert found is not None and not found.missing
    return found


@pytest.mark.parametrize("rslora", [False, True])
def test_it_begins_as_the_best_of_its_rank(base, rslora):
    model = begun(base, rslora=rslora).model
    whole = originals(model)
    assert len(adapted(model)) == 14
    for name, module in adapted(model).items():
        kept = dequantized(module)
        lost = (whole.weight(f"{name}.weight", kept) - kept).double()
        left = float((lost - delta(module)).norm())
        best = float(torch.linalg.svdvals(lost)[module.r["default"] :].norm())
        # The factors are kept in float32, and so is their product: r + 2 roundings of values whose norm is at most E's.
        assert left == pytest.approx(best, abs=(module.r["default"] + 2) * 2**-24 * float(lost.norm()))
        assert left < 0.95 * float(lost.norm())


def test_a_rank_beyond_the_weights_own(base):
    model = attach(base, LoraSettings(r=40, init="loftq", targets=["k_proj"])).model  # 32 x 64
    module = adapted(model)["model.layers.0.self_attn.k_proj"]
    a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
    assert a.any(dim=1).all() and b[:, :32].any(dim=0).all() and not b[:, 32:].any()
    lost = originals(model).weight("model.layers.0.self_attn.k_proj.weight", dequantized(module)) - dequantized(module)
    torch.testing.assert_close(delta(module), lost, rtol=0, atol=1e-6 * float(lost.norm()))


def test_leading_part_of_nothing_is_empty():
    first, second = leading_part(torch.zeros(3, 5, dtype=torch.float64), 2)
    assert first.shape == (3, 0) and second.shape == (0, 5)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_leading_part_has_factors_of_one_size(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    first, second = leading_part(matrix, 2)
    sizes = torch.linalg.svdvals(matrix)[:2].flip(0)
    torch.testing.assert_close(first.norm(dim=0) ** 2, sizes)
    torch.testing.assert_close(second.norm(dim=1) ** 2, sizes)


def test_the_fast_layers_have_it(base):
    model = begun(base).model.eval()
    plain = model(IDS).logits
    assert apply(model).layers == 2
    torch.testing.assert_close(model(IDS).logits, plain, rtol=0, atol=ROUNDING)


def test_merged_into_16_bits_it_is_what_was_learnt(base, folder):
    model = begun(base).model
    wide = load(str(folder), LoadOptions()).model.state_dict()
    at_first = merged_state_dict(model, None, originals(model))
    before = {name: delta(module) for name, module in adapted(model).items()}
    learn(model)
    whole = originals(model)
    whole.missing.append("model.layers.1.mlp.up_proj.weight")
    merged = merged_state_dict(model, None, whole)
    half = merged_state_dict(model, torch.bfloat16, whole)
    own = merged_state_dict(model)
    for name, module in adapted(model).items():
        weight = f"{name}.weight"
        # Sums of four float32 values of a norm below 1.
        torch.testing.assert_close(at_first[weight], wide[weight], rtol=0, atol=2**-22)
        kept = dequantized(module) + delta(module)
        wanted = kept if weight in whole.missing else wide[weight] + delta(module) - before[name]
        torch.testing.assert_close(merged[weight], wanted, rtol=0, atol=2**-22)
        torch.testing.assert_close(half[weight].float(), wanted, rtol=2**-8, atol=2**-22)
        torch.testing.assert_close(own[weight], kept, rtol=0, atol=2**-22)


@pytest.fixture
def saved(base, four_bit, folder, tmp_path):
    """A trained adapter on disk, the model that it was trained on, and where it is."""
    model = begun(base).model
    learn(model)
    save_adapter(model, four_bit.tokenizer, tmp_path / "saved", str(folder))
    return model.eval(), tmp_path / "saved"


def test_reloaded_in_4_bits_it_is_the_same(saved, folder, tmp_path):
    model, place = saved
    config = json.loads((place / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["r"] == 4 and config["init_lora_weights"] is True
    loaded = load(str(place), LoadOptions(storage="nf4"))
    again = loaded.model.eval()
    assert torch.equal(again(IDS).logits, model(IDS).logits) and not any(WITHOUT in note for note in loaded.notes)
    merged, wanted = (merged_state_dict(one, None, originals(one)) for one in (again, model))
    assert all(torch.equal(merged[name], weight) for name, weight in wanted.items())
    save_adapter(again, loaded.tokenizer, tmp_path / "once more", str(folder))
    for name in ("adapter_model.safetensors", "adapter_beginning.safetensors"):
        assert (tmp_path / "once more" / name).read_bytes() == (place / name).read_bytes()


def test_reloaded_in_16_bits_it_is_without_its_beginning(saved, folder):
    model, place = saved
    wide = load(str(folder), LoadOptions()).model
    wide.load_state_dict(merged_state_dict(model, None, originals(model)))
    loaded = load(str(place), LoadOptions())
    assert loaded.model.peft_config["default"].r == 8 and any(WITHOUT in note for note in loaded.notes)
    assert beginning_of(loaded.model) is None
    torch.testing.assert_close(loaded.model.eval()(IDS).logits, wide(IDS).logits, rtol=0, atol=ROUNDING)


def test_in_8_bits_too(saved):
    loaded = load(str(saved[1]), LoadOptions(storage="fp8"))
    assert loaded.model.peft_config["default"].r == 8 and any(WITHOUT in note for note in loaded.notes)


def test_a_plain_one_for_others(saved, four_bit, folder, tmp_path):
    model, place = saved
    save_adapter(model, four_bit.tokenizer, tmp_path / "plain", str(folder), plain=True)
    assert not (tmp_path / "plain" / "adapter_beginning.safetensors").exists()
    base = load(str(folder), LoadOptions()).model
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "plain")).eval()
    ours = load(str(place), LoadOptions()).model.eval()
    assert torch.equal(theirs(IDS).logits, ours(IDS).logits)


def test_nothing_learnt(base):
    model = begun(base).model
    with pytest.raises(TrainingError, match="what it began as"):
        refuse_untouched(model)
    learn(model)
    refuse_untouched(model)


@pytest.mark.parametrize(
    ("storage", "kept"), [("plain", "in 16 bits or more"), ("int8", "in 8 bits"), ("fp8", "in 8 bits")]
)
def test_other_weights_are_refused(folder, storage, kept):
    model = load(str(folder), LoadOptions(storage=storage)).model
    with pytest.raises(ConfigError, match=f"'loftq' with 'model.layers.0.self_attn.q_proj', {kept}.*load_in_4bit"):
        attach(model, LoraSettings(init="loftq"))
    assert not any("lora" in name for name, _ in model.named_modules())


def test_other_4_bits_are_refused(base):
    base.model.layers[1].mlp.up_proj.weight.quant_state.quant_type = "fp4"
    with pytest.raises(ConfigError, match="'model.layers.1.mlp.up_proj', in fp4.*NF4 lost"):
        begun(base)


def test_what_is_not_linear_is_refused(base):
    base.model.layers[0].mlp.odd = nn.Embedding(2, 2)
    with pytest.raises(ConfigError, match="'model.layers.0.mlp.odd', of type Embedding.*linear layers"):
        begun(base, targets=["q_proj", "odd"])


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_embedding_and_head_are_refused(base, target):
    with pytest.raises(ConfigError, match=f"'loftq' with target '{target}'.*Leave out '{target}'"):
        begun(base, targets=["q_proj", target])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"use_dora": True}, "'loftq' with use_dora.*norm of each row.*Leave one"),
        ({"target_parameters": ["mlp.up_proj.weight"]}, "'loftq' with target_parameters.*Leave one"),
    ],
)
def test_kinds_that_are_refused(base, arguments, words):
    with pytest.raises(ConfigError, match=words):
        attach(base, LoraSettings(), init_lora_weights="loftq", **arguments)


def test_no_strength_is_refused(base):
    with pytest.raises(ConfigError, match="alpha 0.*Raise alpha"):
        attach(base, LoraSettings(init="loftq", alpha=0))


def test_originals_that_are_not_there(base, tmp_path):
    base.name_or_path = str(tmp_path)
    with pytest.raises(
        ConfigError, match=r"no 16-bit original of 'model.layers.0.self_attn.q_proj.weight'.*Load the 16"
    ):
        begun(base)


def test_a_ready_made_4_bit_checkpoint_is_refused(four_bit, tmp_path):
    four_bit.model.save_pretrained(str(tmp_path / "bnb-4bit"))
    four_bit.tokenizer.save_pretrained(str(tmp_path / "bnb-4bit"))
    model = load(str(tmp_path / "bnb-4bit"), LoadOptions()).model
    with pytest.raises(ConfigError, match="bnb-4bit' holds no 16-bit original.*difference to the files"):
        begun(model)
