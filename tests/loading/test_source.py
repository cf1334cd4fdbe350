"""What a name means, and every folder that cannot be loaded, in one sentence before any loader runs."""

import errno
import json
from pathlib import Path

import pytest

from hasten.errors import ModelError
from hasten.loading.source import Source, check_remote_code, read_json, resolve

LLAMA = {"model_type": "llama"}


def folder_of(path, files, config=LLAMA):
    path.mkdir(parents=True, exist_ok=True)
    for name in files:
        (path / name).write_bytes(b"")
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path


def refusal(name, **permissions):
    with pytest.raises(ModelError) as caught:
        resolve(str(name), **permissions)
    return caught.value


def test_the_five_kinds(tmp_path):
    model = folder_of(tmp_path / "ö ä" / "m", ["model.safetensors"])
    adapter = folder_of(tmp_path / "a", ["adapter_config.json", "adapter_model.safetensors"], config=None)
    file = tmp_path / "x.GGUF"
    file.write_bytes(b"GGUF")
    assert resolve("demo") == Source("demo", "demo")
    assert resolve(str(model)) == Source("folder", str(model))
    assert resolve(str(adapter)) == Source("adapter", str(adapter))
    assert resolve(str(file)) == Source("gguf", str(file))
    assert resolve("org/name-1.5_B") == Source("hub", "org/name-1.5_B")
    assert resolve("gpt2") == Source("hub", "gpt2")


# 21.2 of the pains.
def test_a_local_folder_wins_over_a_hub_repository(tmp_path, monkeypatch):
    folder_of(tmp_path / "org" / "name", ["model.safetensors"])
    monkeypatch.chdir(tmp_path)
    assert resolve("org/name") == Source("folder", str((tmp_path / "org" / "name").resolve()))


def test_a_model_of_ollama(tmp_path, monkeypatch):
    manifest = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "m" / "latest"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    assert resolve("ollama:m", ollama=tmp_path) == Source("gguf", str(manifest))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    assert resolve("ollama:m") == Source("gguf", str(manifest))
    assert resolve(str(manifest)) == Source("gguf", str(manifest)), "as runs keep it"
    assert refusal("ollama:n").value.startswith("no such model in ")


def test_the_home_folder_is_understood(tmp_path, monkeypatch):
    folder_of(tmp_path / "m", ["model.safetensors"])
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert resolve("~/m").kind == "folder"


def test_sharded_weights(tmp_path):
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    folder = folder_of(tmp_path / "m", shards)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}}))
    assert resolve(str(folder)).kind == "folder"
    (folder / shards[1]).unlink()
    error = refusal(folder)
    assert error.value == f"1 weight files are missing (first: {shards[1]})"
    assert error.remedy == "Download the weights again."


@pytest.mark.parametrize("name", ["./nothing", "/nowhere/at/all", "a/b/c", "x.gguf", "..\\x"])
def test_a_path_that_is_not_there(name):
    error = refusal(name)
    assert (error.subject, error.value) == (name, "no such file or folder")


def test_a_missing_folder_proposes_its_neighbour(tmp_path):
    folder_of(tmp_path / "my-model", ["model.safetensors"])
    assert refusal(tmp_path / "my-modle").remedy == f"Did you mean '{tmp_path / 'my-model'}'?"
    assert refusal(tmp_path / "zzz").remedy == "Check the spelling and the working folder."
    assert refusal(tmp_path / "no" / "x").remedy == f"The folder '{tmp_path / 'no'}' does not exist either."


@pytest.mark.parametrize("name", ["my model", "org/na me", "org/name?", "-x", "org/a--b", "org/a..b", "a" * 97])
def test_what_is_no_name_at_all(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = refusal(name)
    assert error.value == "neither a local folder nor a hub id" and "'demo'" in error.remedy


def test_an_empty_name_is_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (refusal("").value, refusal(" ").remedy) == ("no name", "Name one.")


def test_a_file_that_is_no_gguf(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    error = refusal(tmp_path / "model.safetensors")
    assert error.value == "a file that is no GGUF" and error.remedy == "Name its folder."


def test_a_folder_without_anything(tmp_path):
    (tmp_path / "readme.txt").write_text("x")
    error = refusal(tmp_path)
    assert error.value == "no config.json among 1 files" and error.remedy == "Name the folder that holds them."


def test_a_folder_of_ggufs(tmp_path):
    folder_of(tmp_path / "m", ["a.gguf", "b.gguf"], config=None)
    assert refusal(tmp_path / "m").remedy == f"Name it: '{tmp_path / 'm' / 'a.gguf'}'."


@pytest.mark.parametrize("others", [[], ["optimizer.pt", "training_args.bin", "consolidated.safetensors"]])
def test_a_folder_without_weights(tmp_path, others):
    error = refusal(folder_of(tmp_path / "m", ["tokenizer.json", *others]))
    assert error.value == "a folder without weights"
    assert "model.safetensors" in error.rule and "Download the weights again" in error.remedy


@pytest.mark.parametrize(
    ("files", "config"),
    [
        (["pytorch_model.bin"], LLAMA),
        (["pytorch_model-00001-of-00002.bin"], LLAMA),
        (["adapter_config.json", "adapter_model.bin"], None),
    ],
)
def test_pickle_weights_are_refused_unless_asked_for(tmp_path, files, config):
    folder = folder_of(tmp_path / "m", files, config)
    error = refusal(folder)
    assert error.value == f"only pickle weights ({files[-1]})"
    assert "run any code" in error.rule and "use_safetensors=False" in error.remedy
    assert resolve(str(folder), allow_pickle=True).kind in ("folder", "adapter")


@pytest.mark.parametrize("files", [["adapter_config.json"], ["adapter_config.json", "model.safetensors"]])
def test_an_adapter_without_weights(tmp_path, files):
    error = refusal(folder_of(tmp_path / "a", files, config=None))
    assert error.value == "a folder without weights" and "adapter_model.safetensors" in error.rule


def test_a_folder_with_both_configs_is_the_adapter(tmp_path):
    files = ["adapter_config.json", "adapter_model.safetensors"]
    assert resolve(str(folder_of(tmp_path / "a", files))).kind == "adapter"


REMOTE = {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling.Own"}}


def test_remote_code_is_refused_unless_asked_for(tmp_path):
    folder = folder_of(tmp_path / "m", ["model.safetensors", "modeling.py"], REMOTE)
    error = refusal(folder)
    assert error.subject == str(folder)
    assert error.value == "it needs Python code from its own repository"
    assert "trust_remote_code=True" in error.remedy
    assert resolve(str(folder), allow_remote_code=True).kind == "folder"


def test_code_beside_a_known_architecture_is_not_needed(tmp_path):
    folder = folder_of(tmp_path / "m", ["model.safetensors"], {**REMOTE, "model_type": "llama"})
    assert resolve(str(folder)).kind == "folder"


@pytest.mark.parametrize("allowed", [True, False])
def test_an_unknown_architecture_proposes_the_nearest(allowed):
    with pytest.raises(ModelError) as caught:
        check_remote_code({"model_type": "lama"}, "x", allowed=allowed)
    assert caught.value.value == "model_type 'lama'"
    assert caught.value.remedy == "Did you mean 'llama'?"
    with pytest.raises(ModelError, match="model_type ''.*Upgrade transformers, or check config.json"):
        check_remote_code({}, "x", allowed=allowed)
    with pytest.raises(ModelError, match="model_type ''.*Upgrade transformers, or check config.json"):
        check_remote_code({"model_type": None}, "x", allowed=allowed)


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "not a JSON object"),
        ('{"a": "é"}'.encode("latin-1"), "not valid JSON"),
        (b"", "not valid JSON"),
    ],
)
def test_a_damaged_config(tmp_path, content, value):
    folder = folder_of(tmp_path / "m", ["model.safetensors"])
    (folder / "config.json").write_bytes(content)
    error = refusal(folder)
    assert error.subject == str(folder / "config.json")
    assert error.value.startswith(value) and error.remedy == "Download it again."


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    folder = folder_of(tmp_path / "m", ["model.safetensors"])

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refuse)
        assert "Permission denied" in refusal(folder).value
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", refuse)
        assert "Check its permissions" in refusal(folder).remedy


def test_read_json(tmp_path):
    (tmp_path / "x.json").write_text('{"é": 1}', encoding="utf-8")
    assert read_json(tmp_path / "x.json") == {"é": 1}
