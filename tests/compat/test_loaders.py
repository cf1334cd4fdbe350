import copy
import pickle
import sys

import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from compat.conftest import moved
from hasten.compat import loaders
from hasten.compat.loaders import FastLanguageModel, FastModel
from hasten.errors import CapabilityError, ConfigError, MissingPackageError, ModelError


def test_a_plain_model_with_methods_of_its_own(loaded):
    model, tokenizer = loaded
    assert type(model) is LlamaForCausalLM
    assert model.max_seq_length == 48
    assert model.dtype is torch.float32  # on a CPU
    assert tokenizer.chat_template
    assert not hasattr(LlamaForCausalLM, "save_pretrained_merged")
    assert model.for_inference() is model


def test_positional_length(tiny_model_folder):
    model, _ = FastModel.from_pretrained(str(tiny_model_folder), 32, load_in_4bit=False)
    assert model.max_seq_length == 32


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", "torch.bfloat16", "bf16"])
def test_dtype(tiny_model_folder, dtype):
    model, _ = FastLanguageModel.from_pretrained(str(tiny_model_folder), load_in_4bit=False, dtype=dtype)
    assert model.dtype is torch.bfloat16


def test_torch_dtype(tiny_model_folder):
    model, _ = FastLanguageModel.from_pretrained(str(tiny_model_folder), load_in_16bit=True, torch_dtype=torch.bfloat16)
    assert model.dtype is torch.bfloat16


def test_two_dtypes(tiny_model_folder):
    with pytest.raises(ConfigError, match="float32.*dtype says bfloat16.*Give one"):
        FastLanguageModel.from_pretrained(
            str(tiny_model_folder), load_in_4bit=False, dtype="bfloat16", torch_dtype="float32"
        )


def test_unknown_dtype(tiny_model_folder):
    with pytest.raises(ConfigError, match="'bfloat61'.*Did you mean 'bfloat16'"):
        FastLanguageModel.from_pretrained(str(tiny_model_folder), load_in_4bit=False, dtype="bfloat61")


@pytest.mark.parametrize("plain", [{"load_in_16bit": True}, {"full_finetuning": True}, {"load_in_4bit": False}])
def test_not_quantized(tiny_model_folder, plain):
    model, _ = FastLanguageModel.from_pretrained(str(tiny_model_folder), **plain)
    assert not getattr(model, "is_quantized", False)


def test_four_bit_is_the_default(tiny_model_folder):
    pytest.importorskip("bitsandbytes")
    model, _ = FastLanguageModel.from_pretrained(str(tiny_model_folder))
    assert model.config.quantization_config.bnb_4bit_quant_type == "nf4"


@pytest.mark.parametrize(("asked", "kind"), [("load_in_fp8", "Fp8Linear"), ("load_in_8bit", "Linear8bitLt")])
def test_eight_bits_take_the_place_of_four(tiny_model_folder, tmp_path, asked, kind):
    pytest.importorskip("bitsandbytes")
    model, tokenizer = FastLanguageModel.from_pretrained(str(tiny_model_folder), **{asked: True})
    assert type(model.model.layers[0].mlp.up_proj).__name__ == kind
    model = FastLanguageModel.get_peft_model(model, r=4)
    ids = torch.arange(3, 19)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    model.save_pretrained_merged(str(tmp_path / "merged"), tokenizer)
    merged, original = (
        FastLanguageModel.from_pretrained(str(folder), load_in_4bit=False)[0].state_dict()
        for folder in (tmp_path / "merged", tiny_model_folder)
    )
    for name, value in original.items():  # B is zero: the weights that the 8 bits were made from
        assert torch.equal(merged[name], value.bfloat16().float()), name


def test_peft_does_not_merge_into_codes(tiny_model_folder):
    model, _ = FastLanguageModel.from_pretrained(str(tiny_model_folder), load_in_fp8=True)
    model = FastLanguageModel.get_peft_model(model, r=4)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(CapabilityError, match="8-bit floats.*save_pretrained_merged"):
            merge(safe_merge=True)


@pytest.mark.parametrize("plain", ["load_in_16bit", "full_finetuning"])
def test_8_bits_and_16_are_refused(tiny_model_folder, plain):
    with pytest.raises(ConfigError, match=f"load_in_fp8.*as is {plain}"):
        FastLanguageModel.from_pretrained(str(tiny_model_folder), load_in_fp8=True, **{plain: True})


def test_two_kinds_of_8_bits_are_refused(tiny_model_folder):
    with pytest.raises(ConfigError, match="load_in_8bit.*True, as is load_in_fp8.*one way"):
        FastLanguageModel.from_pretrained(str(tiny_model_folder), load_in_8bit=True, load_in_fp8=True)


def test_four_bit_without_bitsandbytes(tiny_model_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingPackageError, match=r"not installed.*hasten\[bnb\].*load_in_4bit=False"):
        FastLanguageModel.from_pretrained(str(tiny_model_folder))


def test_four_bit_gradients_survive_an_evaluation(tiny_model_folder):
    """bitsandbytes repacks 4-bit layers at an evaluation on some CPUs, and the repacked product has no gradient."""
    pytest.importorskip("bitsandbytes")
    model, _ = FastLanguageModel.from_pretrained(str(tiny_model_folder))
    model = moved(FastLanguageModel.get_peft_model(model, r=4, use_gradient_checkpointing=False))
    ids = torch.arange(3, 20)[None]

    def gradients():
        model.train()
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.requires_grad])

    before = gradients()
    with torch.no_grad():
        model.eval()(ids)
    torch.testing.assert_close(gradients(), before)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"fast_inference": True}, "fast_inference.*True.*model.generate"),
        ({"qat_scheme": "int4"}, "qat_scheme.*'int4'.*Leave it None"),
        ({"float8_kv_cache": True}, "float8_kv_cache.*True"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.*linear.*config.json"),
        ({"resize_model_vocab": 130}, "resize_model_vocab.*130.*resize_token_embeddings"),
        ({"offload_embedding": True}, "offload_embedding.*True"),
        ({"num_labels": 2}, "num_labels.*2.*classifiers"),
        ({"float32_mixed_precision": True}, r"float32_mixed_precision.*SFTConfig\(bf16=True\)"),
    ],
)
def test_not_offered(tiny_model_folder, arguments, words):
    with pytest.raises(CapabilityError, match=words):
        FastLanguageModel.from_pretrained(str(tiny_model_folder), load_in_4bit=False, **arguments)


def test_every_argument_at_its_default_but_4bit(tiny_model_folder):
    from compat.test_signatures import LOADER, MORE

    given = {**LOADER, **MORE, "model_name": str(tiny_model_folder), "load_in_4bit": False}
    model, _ = FastModel.from_pretrained(**given, num_labels=None, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    assert model.max_seq_length == 64  # all the positions it has


def test_too_many_positional(tiny_model_folder):
    from compat.test_signatures import LOADER

    values = [*{**LOADER, "model_name": str(tiny_model_folder), "load_in_4bit": False}.values(), "more"]
    with pytest.raises(ConfigError, match="more positional arguments.*Name them"):
        FastLanguageModel.from_pretrained(*values)


def test_unknown_argument(tiny_model_folder):
    with pytest.raises(ConfigError, match="atn_implementation.*Remove"):
        FastLanguageModel.from_pretrained(str(tiny_model_folder), load_in_4bit=False, atn_implementation="eager")


def test_unknown_model():
    with pytest.raises(ModelError, match="./nowhere.*no such file or folder"):
        FastLanguageModel.from_pretrained("./nowhere", load_in_4bit=False)


def test_length(tiny_model_folder, capsys):
    model, _ = FastLanguageModel.from_pretrained(str(tiny_model_folder), 4096, load_in_4bit=False)
    assert model.max_seq_length == 64
    assert "4096" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="max_seq_length.*0.*positive"):
        FastLanguageModel.from_pretrained(str(tiny_model_folder), 0, load_in_4bit=False)
    model, _ = FastLanguageModel.from_pretrained(str(tiny_model_folder), None, load_in_4bit=False)
    assert model.max_seq_length == 64


def test_adapter_folder_comes_back_trainable(adapted, tmp_path):
    model, tokenizer = adapted
    model.save_pretrained(str(tmp_path / "lora"))
    tokenizer.save_pretrained(str(tmp_path / "lora"))
    again, _ = FastLanguageModel.from_pretrained(str(tmp_path / "lora"), load_in_4bit=False)
    assert isinstance(again, PeftModel)
    assert any(weight.requires_grad for weight in again.parameters())
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(ids).logits, model.eval()(ids).logits)
    assert FastLanguageModel.get_peft_model(again, r=4, lora_alpha=16) is again
    with pytest.raises(CapabilityError, match="is an adapter.*save_pretrained_merged"):
        FastLanguageModel.from_pretrained(str(tmp_path / "lora"), full_finetuning=True)


def test_generate_in_training_mode(adapted):
    """Generation is right without `for_inference`, whatever mode the model is in, and leaves the mode as it was."""
    model, _ = adapted
    ids = torch.arange(3, 9)[None]
    model.for_inference()
    expected = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False)
    model.for_training()
    assert torch.equal(model.generate(input_ids=ids, max_new_tokens=6, do_sample=False), expected)
    assert model.training


def test_copy_and_pickle_have_methods_of_their_own(loaded):
    model, _ = loaded
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.for_inference() is other


def test_device_map_is_handed_on(tiny_model_folder, monkeypatch):
    seen = {}

    def load(name, options):
        seen.update(options.hf)
        raise ModelError(name, "seen", "Enough.", "None.")

    monkeypatch.setattr(loaders, "load", load)
    with pytest.raises(ModelError):
        FastLanguageModel.from_pretrained(
            str(tiny_model_folder), load_in_4bit=False, device_map="auto", max_memory=None
        )
    assert seen == {"device_map": "auto"}


def test_8_bit_products_are_refused_where_there_are_none(tiny_model_folder):
    with pytest.raises(CapabilityError, match="compute: 'fp8' on .*no GPU.*compute capability"):
        FastLanguageModel.from_pretrained(str(tiny_model_folder), load_in_4bit=False, compute="fp8")
    with pytest.raises(ConfigError, match="compute: 'int4'.*'bf16'.*'fp8'"):
        FastLanguageModel.from_pretrained(str(tiny_model_folder), load_in_4bit=False, compute="int4")


@pytest.mark.parametrize("whole", [True, False])
def test_8_bit_products(tiny_model_folder, monkeypatch, capsys, whole):
    """On a card that has them, made up; the products are the twin's."""
    from hasten.blocks.fp8 import Operand8
    from hasten.compat import fast
    from hasten.hardware.probe import Hardware

    card = Hardware(device="cpu", name="Card", total_bytes=2**34, cores=1, bf16=True, capability=(9, 0))
    monkeypatch.setattr(loaders, "probe", lambda: card)
    monkeypatch.setattr(fast, "probe", lambda: card)
    model, _ = FastLanguageModel.from_pretrained(
        str(tiny_model_folder), dtype="bfloat16", load_in_4bit=False, full_finetuning=whole, compute="fp8"
    )
    model = FastLanguageModel.get_peft_model(model, r=4)
    ids = torch.randint(0, 100, (2, 24))
    model.train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    groups = [
        group for module in model.modules() if hasattr(module, "hasten_fast") for group in module.hasten_fast.groups()
    ]
    assert groups and all(isinstance(group.in_use, Operand8) for group in groups)
    assert ("copies of what is trained" in capsys.readouterr().err) == whole
