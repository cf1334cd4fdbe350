import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from compat.conftest import moved
from hasten.compat import merged
from hasten.compat.loaders import FastLanguageModel
from hasten.errors import CapabilityError, ConfigError, StorageError, TrainingError
from support import tiny

IDS = torch.arange(3, 30)[None]


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits.float()


def dequantized(weight):
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state).float()


def plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def make(folder, **lora):
    model, tokenizer = FastLanguageModel.from_pretrained(str(folder), load_in_4bit=False)
    return moved(FastLanguageModel.get_peft_model(model, **lora)), tokenizer


@pytest.mark.parametrize(
    "lora",
    [
        {"r": 8, "lora_alpha": 8},
        {"r": 8, "lora_alpha": 32},
        {"r": 16, "lora_alpha": 16, "use_rslora": True},
        {"r": 4, "bias": "all"},
        {"r": 4, "layers_to_transform": [1]},
    ],
)
def test_merged_is_the_live_model(tiny_model_folder, tmp_path, lora):
    model, tokenizer = make(tiny_model_folder, **lora)
    model.save_pretrained_merged(str(tmp_path / "exact"), tokenizer, dtype="float32")
    torch.testing.assert_close(logits(plain(tmp_path / "exact")), logits(model), atol=1e-5, rtol=0)
    model.save_pretrained_merged(str(tmp_path / "half"), tokenizer)
    half = plain(tmp_path / "half")
    assert half.dtype is torch.bfloat16
    # bfloat16 keeps 8 bits of each weight; computed in float32 the rest of the way.
    torch.testing.assert_close(logits(half.float()), logits(model), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("tied", [True, False])
def test_head_trained_in_full(tmp_path, tied):
    folder = tiny.save_model(tmp_path / "base", tiny.llama(tied=tied))
    model, tokenizer = make(folder, r=4, target_modules=["q_proj", "lm_head"])
    model.save_pretrained_merged(str(tmp_path / "exact"), tokenizer, dtype="float32")
    again = plain(tmp_path / "exact")
    assert again.config.tie_word_embeddings is False
    live = model.get_base_model().lm_head.modules_to_save["default"].weight
    assert torch.equal(again.lm_head.weight, live)
    torch.testing.assert_close(logits(again), logits(model), atol=1e-5, rtol=0)


def test_tied_stays_tied(adapted, tmp_path):
    model, tokenizer = adapted
    model.save_pretrained_merged(str(tmp_path / "merged"), tokenizer)
    again = plain(tmp_path / "merged")
    assert again.config.tie_word_embeddings is True
    assert again.lm_head.weight.data_ptr() == again.model.embed_tokens.weight.data_ptr()


@pytest.fixture
def four_bit(tmp_path):
    """An adapted 4-bit model, its tokenizer and the folder that it was made from."""
    pytest.importorskip("bitsandbytes", reason="4-bit weights are bitsandbytes'")
    folder = tiny.save_model(tmp_path / "base", tiny.llama(tied=False))
    model, tokenizer = FastLanguageModel.from_pretrained(str(folder))
    return moved(FastLanguageModel.get_peft_model(model, r=4, lora_alpha=16)), tokenizer, folder


def test_merge_from_four_bit(four_bit, tmp_path, capsys):
    model, tokenizer, _ = four_bit
    model.save_pretrained_merged(str(tmp_path / "exact"), tokenizer, dtype="float32", base_weights="quantized")
    assert "quantization_config" not in json.loads((tmp_path / "exact" / "config.json").read_text())
    torch.testing.assert_close(logits(plain(tmp_path / "exact")), logits(model), atol=1e-4, rtol=0)
    assert "what the adapter was trained on" in capsys.readouterr().err


def test_merge_into_what_four_bits_were_made_from(four_bit, tmp_path, capsys):
    model, tokenizer, folder = four_bit
    model.save_pretrained_merged(str(tmp_path / "merged"), tokenizer, dtype="float32")
    said = capsys.readouterr().err
    assert f"the 16-bit weights of {folder}, another base" in said and "no original" not in said
    away = float(re.search(r"4-bit weights are ([0-9.]+)% away", said)[1])
    assert 5 < away < 15  # NF4 with blocks of 64 loses 9 % of normal values
    model.save_pretrained(tmp_path / "adapter")
    wide = PeftModel.from_pretrained(plain(folder).float(), tmp_path / "adapter")
    torch.testing.assert_close(logits(plain(tmp_path / "merged")), logits(wide), atol=1e-5, rtol=0)


def test_originals_that_are_gone(four_bit, tmp_path, capsys):
    model, tokenizer, folder = four_bit
    shutil.rmtree(folder)
    with pytest.raises(ConfigError, match="base_weights: 'original'.*no 16-bit weights.*Use 'quantized'"):
        model.save_pretrained_merged(str(tmp_path / "merged"), tokenizer, base_weights="original")
    with pytest.raises(ConfigError, match="base_weights: 'orginal'.*Did you mean 'original'"):
        model.save_pretrained_merged(str(tmp_path / "merged"), tokenizer, base_weights="orginal")
    assert not (tmp_path / "merged").exists()
    model.save_pretrained_merged(str(tmp_path / "merged"), tokenizer)
    assert "what the adapter was trained on" in capsys.readouterr().err


def share_of(model, folder):
    """How much of the adapter is in a saved 4-bit folder."""
    again, arrived, sent = plain(folder), 0.0, 0.0
    for name, live in model.get_base_model().named_modules():
        if hasattr(live, "get_delta_weight"):
            update = live.get_delta_weight("default").float()
            moved_by = dequantized(again.get_submodule(name).weight) - dequantized(live.base_layer.weight)
            arrived, sent = arrived + (moved_by * update).sum(), sent + update.square().sum()
    return float(arrived / sent)


@pytest.fixture
def slightly_adapted(four_bit):
    """The same with an update that is small beside the steps of 4 bits, as updates are."""
    for name, weight in four_bit[0].named_parameters():
        if "lora_B" in name:
            weight.data *= 0.01
    return four_bit


def test_a16_a_merge_into_four_bits_says_what_survives(slightly_adapted, tmp_path, capsys):
    model, tokenizer, _ = slightly_adapted
    values = {"save_method": "merged_4bit", "base_weights": "quantized"}
    refusal = r"'merged_4bit': (-?\d+)% of what the adapter learnt.*merged_4bit_forced"
    with pytest.raises(CapabilityError, match=refusal) as no:
        model.save_pretrained_merged(str(tmp_path / "no"), tokenizer, **values)
    assert not (tmp_path / "no").exists()
    share = int(re.search(r"(-?\d+)%", str(no.value))[1])
    assert share < 50
    model.save_pretrained_merged(str(tmp_path / "forced"), tokenizer, **values | {"save_method": "merged_4bit_forced"})
    assert f"{share}% of what the adapter learnt is left" in capsys.readouterr().err
    assert share_of(model, tmp_path / "forced") == pytest.approx(share / 100, abs=0.05)  # saved from bfloat16
    config = json.loads((tmp_path / "forced" / "config.json").read_text())["quantization_config"]
    assert config["bnb_4bit_quant_type"] == "nf4" and "lm_head" in config["llm_int8_skip_modules"]
    assert type(plain(tmp_path / "forced").model.layers[0].self_attn.q_proj).__name__ == "Linear4bit"
    assert (tmp_path / "forced" / "tokenizer.json").exists()


def test_added_to_the_originals_an_update_survives_four_bits(four_bit, tmp_path, capsys):
    model, tokenizer, _ = four_bit
    model.save_pretrained_merged(str(tmp_path / "merged"), tokenizer, save_method="merged_4bit")
    said = capsys.readouterr().err
    share = int(re.search(r"(\d+)% of what the adapter learnt is left", said)[1])
    assert share >= 90 and "another base" in said
    assert share_of(model, tmp_path / "merged") == pytest.approx(share / 100, abs=0.05)


def test_a_head_trained_in_full_stays_in_16_bits(tmp_path):
    pytest.importorskip("bitsandbytes", reason="4-bit weights are bitsandbytes'")
    folder = tiny.save_model(tmp_path / "base", tiny.llama(tied=False))
    model, tokenizer = FastLanguageModel.from_pretrained(str(folder))
    model = moved(FastLanguageModel.get_peft_model(model, r=4, target_modules=["q_proj", "lm_head"]))
    model.save_pretrained_merged(str(tmp_path / "merged"), tokenizer, save_method="merged_4bit")
    again = plain(tmp_path / "merged")
    live = model.get_base_model().lm_head.modules_to_save["default"].weight
    assert type(again.lm_head) is torch.nn.Linear and type(again.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    torch.testing.assert_close(again.lm_head.weight.float(), live.to(torch.bfloat16).float())


def test_the_base_model_is_not_replaced(four_bit):
    model, tokenizer, folder = four_bit
    with pytest.raises(ConfigError, match="it holds the base model"):
        model.save_pretrained_merged(str(folder), tokenizer)


def test_a_16_bit_model_is_not_merged_into_four_bits(tiny_model_folder, tmp_path):
    model, tokenizer = make(tiny_model_folder, r=4)
    with pytest.raises(ConfigError, match="loaded in 4 bits.*hasten quantize"):
        model.save_pretrained_merged(str(tmp_path / "no"), tokenizer, save_method="merged_4bit_forced")


def test_float16_stays_float16(tiny_model_folder, tmp_path):
    model, tokenizer = make(tiny_model_folder, r=4)
    model.half()
    model.save_pretrained_merged(str(tmp_path / "merged"), tokenizer)
    assert plain(tmp_path / "merged").dtype is torch.float16


def test_full_finetuning(tiny_model_folder, tmp_path):
    model, tokenizer = FastLanguageModel.from_pretrained(str(tiny_model_folder), full_finetuning=True)
    moved(model)
    model.save_pretrained_merged(str(tmp_path / "merged"), tokenizer, dtype=torch.float32)
    torch.testing.assert_close(logits(plain(tmp_path / "merged")), logits(model), atol=1e-6, rtol=0)


def test_files(adapted, tmp_path, capsys):
    model, tokenizer = adapted
    model.config.use_cache = False  # as a trainer leaves it
    tokenizer(["a b c d e f"], truncation=True, max_length=4, padding="max_length")
    model.save_pretrained_merged(str(tmp_path / "merged"), tokenizer)
    names = sorted(path.name for path in (tmp_path / "merged").iterdir())
    assert not [name for name in names if name.startswith("adapter")]
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(names)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["use_cache"] is True
    saved = json.loads((tmp_path / "merged" / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["truncation"] is None and saved["padding"] is None
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == tokenizer.chat_template
    assert "merged model saved" in capsys.readouterr().err


def test_the_tokenizer_it_was_loaded_with(adapted, tmp_path):
    adapted[0].save_pretrained_merged(str(tmp_path / "merged"))
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


def test_live_model_is_left_alone(adapted, tmp_path):
    model, tokenizer = adapted
    before = logits(model)
    config = model.config.to_dict()
    model.save_pretrained_merged(str(tmp_path / "merged"), tokenizer)
    assert torch.equal(logits(model), before)
    assert model.config.to_dict() == config


def test_invalid_generation_config_is_repaired_on_a_copy(adapted, tmp_path, capsys):
    model, tokenizer = adapted
    live = model.get_base_model().generation_config
    live.do_sample, live.temperature = False, 0.9
    model.save_pretrained_merged(str(tmp_path / "merged"), tokenizer)
    saved = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert saved["do_sample"] is True and saved["temperature"] == 0.9
    assert live.do_sample is False
    assert "do_sample" in capsys.readouterr().err


def test_every_end_token_is_in_the_generation_config(adapted, tmp_path):
    model, tokenizer = adapted
    tokenizer.eos_token = "<|pad|>"
    model.save_pretrained_merged(str(tmp_path / "merged"), tokenizer)
    saved = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert set(saved["eos_token_id"]) == {tiny.PAD, tiny.EOS}


@pytest.mark.parametrize("method", ["lora", "LoRA"])
def test_lora(adapted, tmp_path, method):
    model, tokenizer = adapted
    model.save_pretrained_merged(str(tmp_path / "lora"), tokenizer, save_method=method)
    names = {path.name for path in (tmp_path / "lora").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert "model.safetensors" not in names
    again, _ = FastLanguageModel.from_pretrained(str(tmp_path / "lora"), load_in_4bit=False)
    torch.testing.assert_close(logits(again), logits(model))


def test_lora_of_a_plain_model(loaded, tmp_path):
    with pytest.raises(ConfigError, match="'lora' for a model without an adapter.*merged_16bit"):
        loaded[0].save_pretrained_merged(str(tmp_path / "lora"), save_method="lora")


@pytest.mark.parametrize(
    ("method", "error", "words"),
    [
        ("mxfp4", CapabilityError, "'mxfp4'.*16 bit"),
        ("merged_16bits", ConfigError, "'merged_16bits'.*Did you mean 'merged_16bit'"),
        ("gguf", ConfigError, "'gguf'.*Use 'merged_16bit'"),
    ],
)
def test_other_methods(adapted, tmp_path, method, error, words):
    with pytest.raises(error, match=words):
        adapted[0].save_pretrained_merged(str(tmp_path / "x"), save_method=method)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"push_to_hub": True}, "push_to_hub.*True.*hf upload"),
        ({"safe_serialization": False}, "safe_serialization.*False.*safetensors"),
        ({"state_dict": {}}, "state_dict.*live model"),
        ({"save_function": print}, "save_function.*safetensors"),
        ({"calibration_dataset": object()}, "calibration_dataset.*no calibration"),
    ],
)
def test_not_offered(adapted, tmp_path, arguments, words):
    with pytest.raises(CapabilityError, match=words):
        adapted[0].save_pretrained_merged(str(tmp_path / "x"), **arguments)


def test_not_the_main_process(adapted, tmp_path):
    adapted[0].save_pretrained_merged(str(tmp_path / "x"), is_main_process=False)
    assert not (tmp_path / "x").exists()


def test_a_folder_of_other_things_is_not_replaced(adapted, tmp_path):
    model, tokenizer = adapted
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="holds 'thesis.txt'.*Choose another folder"):
        model.save_pretrained_merged(str(tmp_path), tokenizer)
    model.save_pretrained_merged(str(tmp_path / "lora"), tokenizer, save_method="lora")
    with pytest.raises(ConfigError, match="holds 'adapter_config.json'.*never share"):
        model.save_pretrained_merged(str(tmp_path / "lora"), tokenizer)
    model.save_pretrained_merged(str(tmp_path / "merged"), tokenizer)
    with pytest.raises(ConfigError, match="holds 'config.json'"):
        model.save_pretrained_merged(str(tmp_path / "merged"), tokenizer, save_method="lora")
    model.save_pretrained_merged(str(tmp_path / "merged"), tokenizer)  # an older result of its kind


def test_no_space(adapted, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(StorageError, match="0.0 MB are free.*takes about.*another folder"):
        adapted[0].save_pretrained_merged(str(tmp_path / "x"))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_when_it_fails(adapted, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("abc")

    monkeypatch.setattr(merged, "clean_tokenizer", fail)
    with pytest.raises(RuntimeError, match="abc"):
        adapted[0].save_pretrained_merged(str(tmp_path / "x"))
    assert list(tmp_path.iterdir()) == []


def test_not_finite(adapted, tmp_path):
    model, _ = adapted
    next(weight for weight in model.parameters() if weight.requires_grad).data.fill_(float("nan"))
    with pytest.raises(TrainingError, match="NaN"):
        model.save_pretrained_merged(str(tmp_path / "x"))


def test_dora_is_not_merged(tiny_model_folder, tmp_path):
    model, _ = make(tiny_model_folder, r=4, use_dora=True)
    with pytest.raises(CapabilityError, match="variant.*save_method='lora'"):
        model.save_pretrained_merged(str(tmp_path / "x"))


def test_the_others_exist_and_say_so(adapted):
    model, tokenizer = adapted
    for name, arguments in (
        ("push_to_hub_gguf", ("me/x", tokenizer)),
        ("push_to_hub_merged", ("me/x", tokenizer)),
        ("save_pretrained_torchao", ("x",)),
        ("save_pretrained_ggml", ("x", tokenizer)),
        ("push_to_hub_ggml", (tokenizer, "me/x")),
        ("fast_generate", (["a"],)),
        ("fast_generate_batches", (["a"],)),
        ("save_lora", ("x",)),
        ("load_lora", ("x",)),
    ):
        with pytest.raises(CapabilityError, match=f"{name}.*Use "):
            getattr(model, name)(*arguments)


def test_an_adapter_that_begins_inside_the_weights_is_saved_as_a_plain_one(tiny_model_folder, tmp_path, capsys):
    model, tokenizer = FastLanguageModel.from_pretrained(str(tiny_model_folder), load_in_4bit=False)
    model = FastLanguageModel.get_peft_model(model, r=4, init_lora_weights="pissa")
    assert "plain one of twice the rank" in capsys.readouterr().err
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.05
    ids = torch.arange(3, 19)[None]
    wanted = model(input_ids=ids).logits
    model.save_pretrained(str(tmp_path / "own"))
    model.save_pretrained_merged(str(tmp_path / "method"), tokenizer, save_method="lora")
    for folder in (tmp_path / "own", tmp_path / "method"):
        base = AutoModelForCausalLM.from_pretrained(str(tiny_model_folder))
        again = PeftModel.from_pretrained(base, str(folder))
        assert again.peft_config["default"].r == 8
        torch.testing.assert_close(again(input_ids=ids).logits, wanted, rtol=0, atol=1e-5)
    model.save_pretrained(str(tmp_path / "checkpoint"), state_dict=None)  # as trainers do
    assert json.loads((tmp_path / "checkpoint" / "adapter_config.json").read_text(encoding="utf-8"))["r"] == 4
    model.save_pretrained(str(tmp_path / "other rank"), is_main_process=False)
    assert not (tmp_path / "other rank").exists()
    with pytest.raises(ConfigError, match="selected_adapters"):
        model.save_pretrained(str(tmp_path / "some"), selected_adapters=["default"])


def test_an_adapter_that_began_as_what_4_bits_lost(tmp_path, capsys):
    pytest.importorskip("bitsandbytes", reason="4-bit weights are bitsandbytes'")
    folder = tiny.save_model(tmp_path / "base", tiny.llama(tied=False))
    model, tokenizer = FastLanguageModel.from_pretrained(str(folder))
    model = moved(FastLanguageModel.get_peft_model(model, r=4, init_lora_weights="loftq"))
    model.save_pretrained_merged(str(tmp_path / "merged"), tokenizer, dtype="float32")
    model.save_pretrained_merged(str(tmp_path / "as trained"), tokenizer, dtype="float32", base_weights="quantized")
    live, wide = logits(model), logits(plain(tmp_path / "merged"))
    torch.testing.assert_close(logits(plain(tmp_path / "as trained")), live, atol=1e-4, rtol=0)
    assert not torch.allclose(live, wide, atol=1e-2)

    model.save_pretrained(str(tmp_path / "own"))
    model.save_pretrained_merged(str(tmp_path / "method"), tokenizer, save_method="lora")
    assert "adapter for the 4-bit weights saved" in capsys.readouterr().err
    for place in (tmp_path / "own", tmp_path / "method"):
        in_4, _ = FastLanguageModel.from_pretrained(str(place))
        torch.testing.assert_close(logits(in_4), live, atol=1e-5, rtol=0)
        in_16, _ = FastLanguageModel.from_pretrained(str(place), load_in_4bit=False)
        torch.testing.assert_close(logits(in_16), wide, atol=1e-5, rtol=0)
    assert "without that beginning" in capsys.readouterr().err

    values = {"save_method": "lora", "base_weights": "original"}
    model.save_pretrained_merged(str(tmp_path / "method"), tokenizer, **values)  # in place of the other
    assert "adapter for the 16-bit weights saved" in capsys.readouterr().err
    theirs = PeftModel.from_pretrained(plain(folder), str(tmp_path / "method"))
    torch.testing.assert_close(logits(theirs), wide, atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match="base_weights: 'orginal'.*Did you mean 'original'"):
        model.save_pretrained_merged(str(tmp_path / "x"), tokenizer, save_method="lora", base_weights="orginal")


@pytest.mark.parametrize("rows", [128, 160])
@pytest.mark.parametrize("learnt", ["modules_to_save", "frozen rows"])
def test_a18_new_tokens(tmp_path, rows, learnt):
    """A table only grows, new rows travel with the adapter, and one call loads them; training goes on."""
    tiny.llama(vocab=rows, tied=False).save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    model, tokenizer = FastLanguageModel.from_pretrained(str(tmp_path / "base"), load_in_4bit=False)
    assert tokenizer.add_tokens(["<new1>", "<new2>"]) == 2
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer))
    ends = {"modules_to_save": ["embed_tokens", "lm_head"]} if learnt == "modules_to_save" else {}
    model = moved(FastLanguageModel.get_peft_model(model, r=4, target_modules=["q_proj"], **ends))
    ids = torch.tensor([[3, 4, 128, 129, 5]])
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
    model.save_pretrained_merged(str(tmp_path / "lora"), tokenizer, save_method="lora")
    again, words = FastLanguageModel.from_pretrained(str(tmp_path / "lora"), load_in_4bit=False)
    assert len(again.get_input_embeddings().weight) == max(rows, 130) and len(words) == 130
    assert again.get_input_embeddings().weight[128:130].any(dim=1).all()
    found = again(input_ids=ids, labels=ids)
    torch.testing.assert_close(found.logits, wanted, rtol=0, atol=1e-6)
    found.loss.backward()
    assert any(part.grad is not None and part.grad.any() for part in again.parameters())


def test_in_8_bit_floats(tiny_model_folder, tmp_path):
    from hasten.loading.published import FP8_METHODS

    model, tokenizer = make(tiny_model_folder, r=4, target_modules=["q_proj", "down_proj"])
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
    model.save_pretrained_merged(str(tmp_path / "x"), tokenizer, save_method="fp8")
    config = json.loads((tmp_path / "x" / "config.json").read_text("utf-8"))
    assert config["quantization_config"]["quant_method"] in FP8_METHODS
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    again, _ = FastLanguageModel.from_pretrained(str(tmp_path / "x"), load_in_4bit=False)
    with torch.no_grad():
        found = again(input_ids=ids).logits
    assert 0 < (found - wanted).norm() < 0.1 * wanted.norm()  # e4m3 keeps a value within 2^-4 of itself
