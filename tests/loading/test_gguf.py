"""A GGUF becomes a plain folder, once; what is no usable GGUF ends in one sentence and leaves nothing."""

import errno
import json

import pytest
import torch

from hasten.errors import ModelError, StorageError
from hasten.loading import gguf
from hasten.loading.model import LoadOptions, load
from support import gguf_models, tiny
from support.gguf_files import write_llama


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    return write_llama(folder / "tiny ö.gguf", tiny.llama(tied=False), tiny.tokenizer())


def test_the_folder_is_an_ordinary_model(written, tmp_path):
    folder = gguf.model_folder(written, tmp_path / "cache")
    assert folder.parent == tmp_path / "cache" and folder.name.startswith("tiny ö-")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {entry.name for entry in folder.iterdir()}
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["model_type"], config["hidden_size"], config["num_key_value_heads"]) == ("llama", 64, 2)
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [folder.name], "nothing else is left"


def test_weights_and_tokenizer_are_those_of_the_file(written, tmp_path):
    loaded = load(str(written), LoadOptions(cache=tmp_path))
    expected = tiny.llama(tied=False)
    found = loaded.model.state_dict()
    assert found.keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found[name], tensor), name
    ids = torch.arange(3, 15).unsqueeze(0)
    assert torch.equal(loaded.model.eval()(ids).logits, expected(ids).logits)
    text = "<|im_start|>user\nsay blue<|im_end|>"
    assert loaded.tokenizer(text).input_ids == tiny.tokenizer()(text).input_ids
    assert loaded.tokenizer.chat_template == tiny.CHATML
    assert loaded.source.kind == "gguf" and loaded.source.name == str(written)


def test_it_is_converted_once(written, tmp_path, monkeypatch):
    first = gguf.model_folder(written, tmp_path)
    monkeypatch.setattr(gguf, "_convert", lambda *_: pytest.fail("converted again"))
    assert gguf.model_folder(written, tmp_path) == first


def test_the_cache_goes_by_content(written, tmp_path, monkeypatch):
    first = gguf.model_folder(written, tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    changed = write_llama(other / written.name, tiny.llama(tied=False, seed=1), tiny.tokenizer())
    assert gguf.model_folder(changed, tmp_path) != first


def test_what_is_no_gguf(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"<html>not found</html>")
    with pytest.raises(ModelError, match=r"x\.gguf: not a GGUF file.*four bytes.*Download it again"):
        gguf.model_folder(tmp_path / "x.gguf", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_file_that_was_cut_off(written, tmp_path):
    content = written.read_bytes()
    (tmp_path / "half.gguf").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=r"half\.gguf: a damaged GGUF.*Download it again"):
        gguf.model_folder(tmp_path / "half.gguf", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_architecture_that_nobody_knows(tmp_path):
    file = write_llama(tmp_path / "odd.gguf", tiny.llama(tied=False), tiny.tokenizer(), architecture="grok")
    with pytest.raises(
        ModelError, match="architecture 'grok': transformers cannot read it.*hasten itself.*llama.*folder"
    ):
        gguf.model_folder(file, tmp_path / "cache")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"gemma2.embedding_length": "x"}, "expected int"),
        ({"gemma2.block_count": 1}, "would leave out 1 of its 2 layers"),
        ({"gemma2.attention.head_count": 0}, "transformers cannot read it"),
        ({"gemma2.rope.freq_base": "x"}, "transformers cannot read it"),
        ({"tokenizer.ggml.merges": [1]}, "transformers cannot read it"),
        ({"tokenizer.ggml.bos_token_id": [1]}, "transformers cannot read it"),
    ],
)
def test_what_transformers_trips_over_is_one_sentence(tmp_path, fields, said):
    small = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    file = tmp_path / "x.gguf"
    gguf_models.write_model(file, gguf_models.model("gemma2", **small), tiny.tokenizer(), fields=fields)
    with pytest.raises(ModelError, match=f"architecture 'gemma2': .*{said}") as caught:
        gguf.model_folder(file, tmp_path / "cache")
    assert caught.value.remedy == "Use the model's Hugging Face folder."
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_architecture_without_a_table_is_left_to_transformers(tmp_path):
    file = write_llama(tmp_path / "x.gguf", tiny.llama(tied=False), tiny.tokenizer(), architecture="deci")
    with pytest.raises(ModelError, match="architecture 'deci'"):  # this file's names are not that architecture's
        gguf.model_folder(file, tmp_path / "cache")


def test_the_folder_says_how_it_was_made(written, tmp_path):
    folder = gguf.model_folder(written, tmp_path)
    record = json.loads((folder / gguf.NOTES).read_text())
    assert (record["file"], record["architecture"]) == (written.name, "llama")
    assert gguf.notes(folder) == record["notes"] and gguf.system_text(folder) is None
    assert gguf.notes(tmp_path) == [], "a folder that was not converted has nothing to say"


def test_sampling_that_the_file_recommends(tmp_path):
    fields = {"general.sampling.temp": 0.6, "general.sampling.top_k": 20, "tokenizer.ggml.eot_token_id": 7}
    gguf_models.write_model(tmp_path / "x.gguf", gguf_models.model("llama"), fields=fields)
    folder = gguf.model_folder(tmp_path / "x.gguf", tmp_path / "cache")
    assert json.loads((folder / "generation_config.json").read_text()) == {
        "bos_token_id": 1,
        "eos_token_id": [2, 7],
        "pad_token_id": 0,
        "temperature": 0.6,
        "top_k": 20,
        "do_sample": True,
    }


def test_a_full_disk_leaves_no_folder(written, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf, "_convert", full)
    with pytest.raises(StorageError, match="no space left.*Free some space"):
        gguf.model_folder(written, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_that_cannot_be_read(written, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(ModelError, match="cannot be read .Permission denied.*Check its permissions"):
        gguf.model_folder(written, tmp_path)
