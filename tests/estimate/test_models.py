"""Models are found, and nothing of them is loaded."""

import json

import pytest
import safetensors

from hasten.errors import ModelError
from hasten.estimate.models import describe, header_of
from hasten.loading.model import LoadOptions
from support import tiny


def test_a_folder(tiny_model_folder, monkeypatch):
    monkeypatch.setattr(safetensors, "safe_open", None)  # nothing is made of its weights
    found = describe(str(tiny_model_folder), LoadOptions())
    size = (tiny_model_folder / "model.safetensors").stat().st_size
    assert found.config.hidden_size == 64 and found.files_bytes == size and set(found.types) == {"F32"}
    assert found.values == sum(parameter.numel() for parameter in tiny.llama().parameters())


def test_a_configuration_alone(tiny_model_folder, tmp_path):
    file = tmp_path / "config.json"
    file.write_text((tiny_model_folder / "config.json").read_text())
    found = describe(str(file), LoadOptions())
    assert found.config.model_type == "llama" and found.values is None
    folder = describe(str(tmp_path), LoadOptions())
    assert folder.config.hidden_size == 64 and "config.json alone" in folder.notes[0]


def test_an_adapter_is_counted_as_its_base(tiny_model_folder, tmp_path):
    from hasten.lora.attach import attach
    from hasten.lora.settings import LoraSettings

    model = attach(tiny.llama(), LoraSettings(r=2)).model
    model.peft_config["default"].base_model_name_or_path = str(tiny_model_folder)
    model.save_pretrained(tmp_path / "adapter")
    found = describe(str(tmp_path / "adapter"), LoadOptions())
    assert found.config.hidden_size == 64 and "its base" in found.notes[0]


def test_a_gguf(tmp_path):
    from support.gguf_files import write_llama

    file = write_llama(tmp_path / "model.gguf", tiny.llama(), tiny.tokenizer())
    found = describe(str(file), LoadOptions())
    assert found.config.model_type == "llama" and found.files_bytes == file.stat().st_size
    assert found.values and "converted once" in found.notes[0]
    assert [path.name for path in tmp_path.iterdir()] == [file.name], "nothing was converted"


def test_the_hub_is_not_asked_where_it_cannot_be(tmp_path):
    with pytest.raises(ModelError, match="cannot be reached"):
        describe("nobody/nothing", LoadOptions())


def test_a_model_of_the_hubs_cache(tiny_model_folder, tmp_path, monkeypatch):
    import huggingface_hub

    from hasten.estimate import models

    monkeypatch.setattr(models, "config_of", lambda name, options: "config")
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda name, file, **_: str(tiny_model_folder / file)
    )
    found = describe("org/name", LoadOptions())
    assert (found.name, found.config) == ("org/name", "config") and found.values


def test_headers_of_the_hub(monkeypatch):
    import huggingface_hub

    from hasten.estimate import models

    class Metadata:
        parameter_count = {"BF16": 7, "F32": 2}

    monkeypatch.setattr(models, "config_of", lambda name, options: "config")
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", lambda *args, **kwargs: Metadata)
    assert (describe("org/name", LoadOptions()).values, describe("org/name", LoadOptions()).types) == (
        9,
        {"BF16": 7, "F32": 2},
    )

    def offline(*args, **kwargs):
        raise huggingface_hub.errors.OfflineModeIsEnabled("offline")

    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", offline)
    assert "headers were not read (offline)" in describe("org/name", LoadOptions()).notes[0]


@pytest.mark.parametrize(
    "content", [b"", b"abc", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0[]", b'\x0a\0\0\0\0\0\0\0{"a": {} }']
)
def test_broken_headers(content, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ModelError, match="not a safetensors file, or cut off"):
        header_of(file)


@pytest.mark.parametrize("offsets", [[0, 10**12], [0, 9], [-8, 0], [8, 0], "ab", None])
def test_headers_that_lie_about_the_file(offsets, tmp_path):
    file = tmp_path / "model.safetensors"

    def write(offsets):
        header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": offsets}}).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))

    write([0, 8])
    assert header_of(file) == {"F32": 2}
    write(offsets)
    with pytest.raises(ModelError, match="not a safetensors file, or cut off.*Download it again"):
        header_of(file)


@pytest.mark.parametrize(
    ("values", "what"), [("[]", "not a JSON object"), ("{}", "model_type"), ('{"model_type": "lama"}', "llama")]
)
def test_configurations_that_say_nothing(values, what, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(values)
    with pytest.raises(ModelError, match=what):
        describe(str(file), LoadOptions())


def test_remote_code_is_not_run(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}))
    with pytest.raises(ModelError, match="Code of others is not run"):
        describe(str(file), LoadOptions())


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "llama", "hidden_size": 3072.5},
        {"model_type": "llama", "num_attention_heads": 0},
        {"model_type": "llama", "num_hidden_layers": None},
        {"model_type": "mamba"},
    ],
)
def test_a_configuration_that_is_none(values, tmp_path):
    from hasten.estimate.facts import facts_of

    path = tmp_path / "config.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ModelError):
        described = describe(str(path), LoadOptions())
        facts_of(described.name, described.config)
