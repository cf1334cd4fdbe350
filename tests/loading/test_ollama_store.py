"""Models of an Ollama store made up in a temporary folder: found, checked, refused."""

import hashlib
import json
from pathlib import Path

import pytest

from hasten.errors import ModelError
from hasten.loading import gguf
from hasten.loading.model import LoadOptions, load
from hasten.loading.ollama_store import find_manifest, is_manifest, read_manifest, stores
from hasten.loading.source import resolve
from support import tiny
from support.gguf_files import write_llama

MEDIA = "application/vnd.ollama.image."


def put(store, content):
    digest = hashlib.sha256(content).hexdigest()
    (store / "blobs").mkdir(parents=True, exist_ok=True)
    (store / "blobs" / f"sha256-{digest}").write_bytes(content)
    return f"sha256:{digest}"


def add(store, place, layers):
    """A model: its manifest at `place`, layers of (kind, content)."""
    entries = [
        {"mediaType": MEDIA + kind, "digest": put(store, content), "size": len(content)} for kind, content in layers
    ]
    path = store / "manifests" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schemaVersion": 2, "config": entries[0] if entries else {}, "layers": entries}))
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    return write_llama(path, tiny.llama(tied=False), tiny.tokenizer()).read_bytes()


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "ö" / "models"
    (folder / "manifests").mkdir(parents=True)
    return folder


LIBRARY = "registry.ollama.ai/library"


def test_it_is_found_by_name(store, weights):
    latest = add(store, f"{LIBRARY}/tiny/latest", [("model", weights)])
    q8 = add(store, f"{LIBRARY}/tiny/1b-q8_0", [("model", weights)])
    mine = add(store, "registry.ollama.ai/me/tiny/latest", [("model", weights)])
    hub = add(store, "hf.co/org/tiny-GGUF/Q4_K_M", [("model", weights)])
    assert find_manifest("ollama:tiny", store) == find_manifest("ollama:tiny:latest", store) == latest
    assert find_manifest("tiny:1b-q8_0", store) == q8
    assert find_manifest("ollama:me/tiny", store) == mine
    assert find_manifest("ollama:hf.co/org/tiny-GGUF:Q4_K_M", store) == hub
    assert resolve("ollama:tiny", ollama=store).path == latest and resolve("ollama:tiny", ollama=store).kind == "gguf"
    assert read_manifest(hub).name == "hf.co/org/tiny-GGUF:Q4_K_M" and read_manifest(latest).name == "tiny:latest"
    assert is_manifest(latest) and not is_manifest(store / "blobs" / "x")


def test_a_tag_may_end_in_gguf(store, weights, tmp_path):
    path = add(store, "hf.co/org/tiny-GGUF/tiny-Q4_K_M.gguf", [("model", weights)])
    assert find_manifest("ollama:hf.co/org/tiny-GGUF:tiny-Q4_K_M.gguf", store) == path and is_manifest(path)
    assert (gguf.model_folder(path, tmp_path / "cache") / "model.safetensors").is_file()
    path.write_bytes(weights)
    assert not is_manifest(path)
    path.unlink()
    assert not is_manifest(path)


def test_where_the_store_is(monkeypatch, tmp_path):
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    assert stores() == [tmp_path]
    monkeypatch.delenv("OLLAMA_MODELS")
    assert stores()[0] == Path.home() / ".ollama" / "models"


def test_it_loads_as_a_base(store, weights, tmp_path, monkeypatch):
    import torch

    layers = [
        ("model", weights),
        ("template", b"{{ .Prompt }}"),
        ("system", b"You are tiny."),
        ("params", json.dumps({"stop": ["<|im_end|>"], "temperature": 0.6, "num_ctx": 64}).encode()),
        ("license", b"MIT"),
    ]
    add(store, f"{LIBRARY}/tiny/latest", layers)
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    options = LoadOptions(cache=tmp_path / "cache")
    loaded = load("ollama:tiny", options)
    for name, tensor in tiny.llama(tied=False).state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    assert loaded.tokenizer.chat_template == tiny.CHATML, "the chat template of the GGUF"
    assert loaded.model.generation_config.temperature == 0.6 and loaded.model.generation_config.do_sample
    (folder,) = (tmp_path / "cache" / "models").iterdir()
    assert folder.name.startswith("tiny-latest-")
    assert gguf.system_text(folder) == "You are tiny."
    said = " ".join(gguf.notes(folder))
    assert (
        "a system text" in said and "parameters: num_ctx, stop, temperature" in said and "template of Ollama's" in said
    )


def test_another_system_text_is_another_model(store, weights, tmp_path):
    one = add(store, f"{LIBRARY}/a/latest", [("model", weights), ("system", b"A")])
    two = add(store, f"{LIBRARY}/a/new", [("model", weights), ("system", b"B")])
    folders = [gguf.model_folder(path, tmp_path / "cache") for path in (one, two)]
    assert [gguf.system_text(folder) for folder in folders] == ["A", "B"]


def refusal(function, *arguments):
    with pytest.raises(ModelError) as caught:
        function(*arguments)
    return caught.value


def test_a_model_that_is_not_there(store, weights):
    assert "It is empty." in refusal(find_manifest, "ollama:tiny", store).rule
    add(store, f"{LIBRARY}/tinyllama/1.1b", [("model", weights)])
    error = refusal(find_manifest, "ollama:tinylama:1.1b", store)
    assert error.value.startswith("no such model in ") and "tinyllama:1.1b" in error.rule
    assert error.remedy == "Did you mean 'tinyllama:1.1b'?"
    assert "ollama pull zzz:latest" in refusal(find_manifest, "ollama:zzz", store).remedy


def test_no_store(tmp_path):
    error = refusal(find_manifest, "ollama:tiny", tmp_path / "nothing")
    assert error.value == f"no Ollama store in {tmp_path / 'nothing'}" and "OLLAMA_MODELS" in error.remedy


@pytest.mark.parametrize(
    "name",
    [
        *("ollama:", "ollama:..", "ollama:../x", "ollama:x:..", "ollama:../../../etc/passwd", "ollama:a/../b/c:d"),
        *(
            "ollama:a b",
            "ollama:/etc/passwd",
            "ollama:x:",
            "ollama:a/b/c/d",
            "ollama:x\\y",
            "ollama:x:a/b",
            "ollama:-x",
        ),
    ],
)
def test_names_cannot_leave_the_store(store, name):
    assert refusal(find_manifest, name, store).value == "no name of an Ollama model"


def test_digests_cannot_leave_the_store(store, weights):
    path = add(store, f"{LIBRARY}/tiny/latest", [("model", weights)])
    for digest in ("sha256:../../../../etc/passwd", "md5:0", "", "sha256:" + "A" * 64):
        path.write_text(json.dumps({"layers": [{"mediaType": MEDIA + "model", "digest": digest}]}))
        assert refusal(read_manifest, path).value == f"a layer of digest {digest!r}"


def test_a_damaged_or_missing_layer(store, weights):
    path = add(store, f"{LIBRARY}/tiny/latest", [("model", weights)])
    (blob,) = (store / "blobs").iterdir()
    blob.write_bytes(weights[:-1] + b"x")
    error = refusal(read_manifest, path)
    assert "has the SHA-256" in error.value and "ollama pull tiny:latest" in error.remedy
    blob.unlink()
    assert "cannot be read (No such file" in refusal(read_manifest, path).value


@pytest.mark.parametrize("content", ["{", "[]", '{"layers": [1]}', '{"layers": [{"digest": "x"}]}', "{}"])
def test_a_damaged_manifest(store, content):
    path = add(store, f"{LIBRARY}/tiny/latest", [])
    path.write_text(content)
    assert refusal(read_manifest, path).value.startswith("no manifest (")


def test_what_is_no_single_model(store, weights):
    path = add(store, f"{LIBRARY}/a/latest", [("model", weights), ("adapter", b"GGUF")])
    error = refusal(read_manifest, path)
    assert "an adapter on another model" in error.value and "FROM" in error.remedy
    path = add(store, f"{LIBRARY}/b/latest", [("model", weights), ("model", weights + b"x")])
    assert refusal(read_manifest, path).value == "2 files of weights"
    path = add(store, f"{LIBRARY}/c/latest", [("tensor", b"x")])
    assert refusal(read_manifest, path).value == "no GGUF among its layers (tensor)"


@pytest.mark.parametrize(
    ("params", "value"), [(b"{", "parameters that are no JSON ("), (b"[]", "parameters that are no")]
)
def test_damaged_parameters(store, weights, params, value):
    path = add(store, f"{LIBRARY}/a/latest", [("model", weights), ("params", params)])
    assert refusal(read_manifest, path).value.startswith(value)
