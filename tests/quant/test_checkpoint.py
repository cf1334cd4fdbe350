"""A model's name in, a folder out."""

import json
import os
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hasten.errors import ConfigError, DataError, HastenError, ModelError, StorageError
from hasten.loading.model import LoadOptions
from hasten.loading.source import Source
from hasten.quant.checkpoint import FIGURES, PAGE, Request, _called, quantize_checkpoint
from hasten.quant.dynamic import QuantizeSettings
from support import tiny

ROWS = [{"text": f"{number} the red dog and the green cat, one two three, say blue"} for number in range(60)]


def request(model, output, *, rows=ROWS, tokens=256, **settings):
    return Request(
        model=str(model), output=output, settings=QuantizeSettings(**settings), sources=("x",), rows=rows, tokens=tokens
    )


@pytest.fixture(scope="module")
def made(_tiny_model_folder, tmp_path_factory):
    """The tiny model quantized, which tests read and leave as it is: its folder, its figures and what was told."""
    output, told = tmp_path_factory.mktemp("made") / "new" / "quantized", []
    figures = quantize_checkpoint(request(_tiny_model_folder, output, budget=1.3), LoadOptions(), told.append)
    return output, figures, told


def test_a_folder_that_transformers_loads(made, _tiny_model_folder):
    output, figures, told = made
    names = {file.name for file in output.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", FIGURES, PAGE} <= names
    written = json.loads((output / FIGURES).read_text("utf-8"))
    assert written["model"] == str(_tiny_model_folder) and written["bytes"] == figures.bytes
    assert written["settings"]["budget"] == 1.3 and len(written["projections"]) == 14
    model = AutoModelForCausalLM.from_pretrained(output)
    tokens = AutoTokenizer.from_pretrained(output)("the red dog", return_tensors="pt")
    assert model(**tokens.to(model.device)).logits.isfinite().all()
    config = json.loads((output / "config.json").read_text("utf-8"))
    better = {projection.name for projection in figures.projections if projection.bits == 16}
    assert set(config["quantization_config"]["llm_int8_skip_modules"]) == better | {"lm_head"}
    assert config["dtype"] == "bfloat16" and told[0] == "reading rows" and told[-1] == f"saving to {output}"
    assert sorted(path.name for path in output.parent.iterdir()) == ["quantized"], "nothing temporary is left"


def test_a_name_that_was_typed_in_one_folder_is_found_from_another(tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_model_folder.parent)
    quantize_checkpoint(request(tiny_model_folder.name, tmp_path / "a"), LoadOptions())
    assert json.loads((tmp_path / "a" / FIGURES).read_text("utf-8"))["model"] == str(tiny_model_folder)


@pytest.mark.parametrize(
    ("typed", "source", "called"),
    [
        ("org/name", Source("hub", "org/name"), "org/name"),
        ("demo", Source("demo", "demo"), "demo"),
        ("./x.gguf", Source("gguf", "/here/x.gguf"), "/here/x.gguf"),
        ("ollama:tiny", Source("gguf", "/models/manifests/registry.ollama.ai/library/tiny/latest"), "ollama:tiny"),
    ],
)
def test_originals_are_called_so_that_they_are_found(typed, source, called):
    assert _called(typed, source) == called


def test_what_was_written_measures_as_was_told(made, _tiny_model_folder):
    from hasten.quant.calibration import read_windows

    output, figures, _ = made
    windows = read_windows(["x"], tiny.tokenizer(), 256, 64, ROWS)
    original = AutoModelForCausalLM.from_pretrained(_tiny_model_folder)
    loaded = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
    rows = torch.stack(windows.heldout)
    with torch.no_grad():
        p, q = (model(rows.to(model.device)).logits.cpu().float().log_softmax(-1) for model in (original, loaded))
    # 16-bit parts and values of 4-bit parts are rounded to bfloat16 in the file.
    assert (p.exp() * (p - q)).sum(-1).mean().item() == pytest.approx(figures.divergence, rel=0.3, abs=1e-5)


def test_one_layer_at_a_time_writes_the_same(made, tiny_model_folder, tmp_path):
    whole, figures, told_of_whole = made
    assert "weights: all on cpu (they are computed where they are)" in told_of_whole and not figures.streamed
    streamed, told = tmp_path / "streamed", []
    asked = replace(request(tiny_model_folder, streamed, budget=1.3), stream=True)
    figures = quantize_checkpoint(asked, LoadOptions(), told.append)
    assert "weights: one layer at a time on cpu (asked for)" in told and figures.streamed
    assert (streamed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert json.loads((streamed / FIGURES).read_text("utf-8"))["streamed"] is True


def test_what_does_not_fit_the_device_is_streamed(tiny_model_folder, tmp_path, monkeypatch):
    """A device with less memory than the model, made up: its tensors stay on the CPU."""
    from hasten.hardware.probe import Hardware
    from hasten.quant import checkpoint

    small = Hardware(device="cuda:0", name="Small", total_bytes=2**20, cores=1, bf16=True)
    monkeypatch.setattr(checkpoint, "probe", lambda: small)
    monkeypatch.setattr(checkpoint, "free_bytes", lambda hardware: 2**20)
    real, asked = checkpoint.quantize, []

    def on_the_cpu(model, windows, settings, tell, device):
        asked.append((model.device.type, device))
        return real(model, windows, settings, tell, torch.device("cpu"))

    monkeypatch.setattr(checkpoint, "quantize", on_the_cpu)
    told = []
    quantize_checkpoint(request(tiny_model_folder, tmp_path / "out"), LoadOptions(device="cuda:0"), told.append)
    assert asked == [("cpu", torch.device("cuda:0"))]
    (line,) = (line for line in told if line.startswith("weights: "))
    assert line.startswith("weights: one layer at a time on cuda:0 (0.0 GiB and 0.0 GiB to work in, 0.0 GiB at hand)")


def test_a_quantized_model_is_refused(made, tmp_path):
    with pytest.raises(ModelError) as caught:
        quantize_checkpoint(request(made[0], tmp_path / "second"), LoadOptions())
    assert "its weights are quantized already (bitsandbytes)" in str(caught.value)
    assert "Name the original model." in str(caught.value) and not (tmp_path / "second").exists()


def test_an_adapter_is_refused(tiny_model_folder, tmp_path):
    from peft import LoraConfig, get_peft_model

    adapter = tmp_path / "adapter"
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(adapter)
    with pytest.raises(ModelError) as caught:
        quantize_checkpoint(request(adapter, tmp_path / "out"), LoadOptions())
    assert "it is an adapter" in str(caught.value) and "Merge it into its base first" in str(caught.value)


def test_a_folder_that_is_there(tiny_model_folder, tmp_path):
    with pytest.raises(ConfigError) as caught:
        quantize_checkpoint(request(tiny_model_folder, tmp_path), LoadOptions())
    assert f"output: '{tmp_path}' is there already. Nothing is overwritten." in str(caught.value)
    assert "Choose another folder, or delete it." in str(caught.value)


def test_a_folder_that_cannot_be(tiny_model_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError) as caught:
        quantize_checkpoint(request(tiny_model_folder, tmp_path / "file" / "out"), LoadOptions())
    assert "is a file" in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_closed(tiny_model_folder, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError) as caught:
        quantize_checkpoint(request(tiny_model_folder, tmp_path / "out"), LoadOptions())
    assert "not writable by this user" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "kind", "parts"),
    [
        ({"tokens": 10}, ConfigError, ["tokens: 10.", "64 or more", "4096 is a good number."]),
        ({"upgrade_bits": 8}, ConfigError, ["upgrade_bits: 8.", "transformers cannot load", "Use 16"]),
        ({"rows": [{"text": "one"}]}, DataError, ["the calibration rows", "At least 256"]),
        ({"rows": []}, DataError, ["row"]),
    ],
)
def test_bad_requests(changes, kind, parts, tiny_model_folder, tmp_path):
    with pytest.raises(HastenError) as caught:
        quantize_checkpoint(request(tiny_model_folder, tmp_path / "out", **changes), LoadOptions())
    assert isinstance(caught.value, kind) and not (tmp_path / "out").exists()
    for part in parts:
        assert part in str(caught.value)


def test_nothing_is_left_when_it_fails(tiny_model_folder, tmp_path, monkeypatch):
    from hasten.quant import checkpoint

    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_text", full)
    with pytest.raises(StorageError) as caught:
        quantize_checkpoint(request(tiny_model_folder, tmp_path / "out"), LoadOptions())
    assert "no space left on the disk" in str(caught.value) and list(tmp_path.iterdir()) == []
