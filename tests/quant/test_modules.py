"""bitsandbytes' modules in a model that transformers saves and loads."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from hasten.errors import MissingPackageError
from hasten.quant import modules, nf4
from hasten.quant.dynamic import QuantizeSettings, quantize
from hasten.quant.modules import require_bitsandbytes, to_bitsandbytes
from support import tiny


@pytest.fixture(scope="module")
def chosen(windows):
    model = tiny.llama(intermediate_size=192, initializer_range=0.1, attention_bias=True)
    return model, quantize(model, windows, QuantizeSettings(budget=1.3))[0]


@pytest.fixture
def quantized(chosen):
    model, codes = copy.deepcopy(chosen[0]), chosen[1]  # modules of 4 bits may change when they are first used
    values = {name: model.get_submodule(name).weight.detach().clone() for name in codes}
    to_bitsandbytes(model, codes, torch.bfloat16)
    return model, codes, values


def test_reloaded_by_plain_transformers_it_gives_the_same_logits(quantized, windows, tmp_path):
    model, codes, _ = quantized
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, device_map="cpu")
    kinds = {name: type(module).__name__ for name, module in reloaded.named_modules()}
    assert {name for name, kind in kinds.items() if kind == "Linear4bit"} == codes.keys()
    blocks = {name: reloaded.get_submodule(name).weight.quant_state.blocksize for name in codes}
    assert blocks == {name: weight.block for name, weight in codes.items()} and 32 in blocks.values()
    assert kinds["lm_head"] == "Linear" and reloaded.dtype == torch.bfloat16
    for module in reloaded.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    for window in windows.heldout:
        with torch.no_grad():
            assert torch.equal(model(window[None]).logits, reloaded(window[None]).logits)


def test_its_modules_read_the_chosen_values(quantized):
    from bitsandbytes.functional import dequantize_4bit

    model, codes, values = quantized
    for name in codes:
        weight = model.get_submodule(name).weight
        read = dequantize_4bit(weight.data, weight.quant_state)
        assert torch.equal(read, values[name].bfloat16())


def test_the_file_has_the_counted_bytes(quantized, tmp_path):
    from safetensors.torch import load_file

    model, codes, _ = quantized
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name, weight in codes.items():
        mine = [key for key in tensors if key.startswith(f"{name}.weight") and "bitsandbytes__" not in key]
        assert sum(tensors[key].nbytes for key in mine) == nf4.stored_bytes(tuple(weight.codes_NK.shape), weight.block)


def test_qlora_trains_it(quantized, windows, tmp_path):
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    quantized[0].save_pretrained(tmp_path)
    base = prepare_model_for_kbit_training(AutoModelForCausalLM.from_pretrained(tmp_path))
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear")).train()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    batch, losses = torch.stack(windows.calibration).to(model.device), []
    for _ in range(8):
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


def test_without_bitsandbytes(monkeypatch):
    monkeypatch.setattr(modules.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError) as caught:
        require_bitsandbytes()
    assert 'pip install "hasten[bnb]"' in str(caught.value)
