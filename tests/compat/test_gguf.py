"""`save_pretrained_gguf`: the files, the Modelfile, and every word for a type."""

import pytest
import torch

from compat.conftest import moved
from hasten.compat import gguf, print_quantization_methods
from hasten.compat.loaders import FastLanguageModel
from hasten.errors import CapabilityError, ConfigError
from hasten.loading.model import LoadOptions, load


@pytest.fixture
def adapted(tiny_model_folder):
    model, tokenizer = FastLanguageModel.from_pretrained(str(tiny_model_folder), load_in_4bit=False)
    model = FastLanguageModel.get_peft_model(model, r=4, target_modules=["q_proj", "o_proj", "down_proj"])
    return moved(model), tokenizer


def test_files_and_a_modelfile(adapted, tmp_path, capsys):
    model, tokenizer = adapted
    tmp_path = tmp_path / "new"
    found = model.save_pretrained_gguf(str(tmp_path / "mine"), tokenizer, ["not_quantized", "Q8_0"])
    folder = tmp_path / "mine_gguf"
    assert sorted(path.name for path in folder.iterdir()) == ["Modelfile", "mine-F16.gguf", "mine-Q8_0.gguf"]
    assert found == {
        "save_directory": str(folder),
        "gguf_files": [str(folder / "mine-F16.gguf"), str(folder / "mine-Q8_0.gguf")],
        "modelfile_location": str(folder / "Modelfile"),
    }
    assert not (tmp_path / "mine").exists() and [path.name for path in tmp_path.iterdir()] == ["mine_gguf"]
    assert "weights" in (said := capsys.readouterr().err) and "ollama create NAME -f" in said
    ids = torch.arange(3, 19)[None]
    again = load(str(folder / "mine-F16.gguf"), LoadOptions(dtype="float32")).model
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
        assert (again(input_ids=ids).logits - wanted).norm() <= 0.05 * wanted.norm()
    model.save_pretrained_gguf(str(tmp_path / "mine"), tokenizer, "f16", merge_is_disposable=False)
    assert (tmp_path / "mine" / "config.json").is_file(), "the merged folder is kept where that is asked for"
    assert sorted(path.name for path in folder.iterdir()) == ["Modelfile", "mine-F16.gguf", "mine-Q8_0.gguf"]


def test_words_for_types(capsys):
    assert gguf.types_of("fast_quantized") == gguf.types_of(None) == ("q8_0",)
    assert gguf.types_of(["quantized", "q4_k_m", "Q5_K_M", "dynamic"]) == ("q4_k_m", "q5_k_m", "dynamic")
    print_quantization_methods()
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("not_quantized", "q4_k_m", "iq4_xs", "dynamic"))


def test_mistakes(adapted, tmp_path):
    model, tokenizer = adapted
    with pytest.raises(ConfigError, match="'q4_k_z'.*Did you mean"):
        model.save_pretrained_gguf(str(tmp_path / "x"), tokenizer, "q4_k_z")
    with pytest.raises(ConfigError, match="quantization_method.*an empty list"):
        model.save_pretrained_gguf(str(tmp_path / "x"), tokenizer, [])
    with pytest.raises(ConfigError, match="first_conversion.*'f17'"):
        model.save_pretrained_gguf(str(tmp_path / "x"), tokenizer, "f16", first_conversion="f17")
    with pytest.raises(CapabilityError, match="push_to_hub.*hf upload"):
        model.save_pretrained_gguf(str(tmp_path / "x"), tokenizer, "f16", push_to_hub=True)
    (tmp_path / "y_gguf").mkdir()
    (tmp_path / "y_gguf" / "thesis.txt").write_text("mine", "utf-8")
    with pytest.raises(ConfigError, match="it holds 'thesis.txt'"):
        model.save_pretrained_gguf(str(tmp_path / "y"), tokenizer, "f16")
    assert [path.name for path in tmp_path.iterdir()] == ["y_gguf"]
