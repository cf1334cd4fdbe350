"""Files that were read are given back, and loading holds no second copy of the weights."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from hasten.loading import model as module
from hasten.loading.model import LoadOptions, load
from hasten.loading.pages import drop_cached, weight_files
from support import tiny

MEASURE = Path(__file__).parents[1] / "support" / "loading_script.py"


def test_the_files_of_a_folder(tiny_model_folder, tmp_path):
    (file,) = weight_files(str(tiny_model_folder), "x", None)
    assert file.name == "model.safetensors" and drop_cached([file]) in (0, 1)
    assert drop_cached([tmp_path / "gone"]) == 0
    assert weight_files("nobody/nothing", "nobody/nothing", None) == []


def test_they_are_given_back_where_memory_is_shared_only(tiny_model_folder, monkeypatch):
    dropped = []
    monkeypatch.setattr(module, "drop_cached", lambda files: dropped.extend(files))
    load(str(tiny_model_folder), LoadOptions())
    assert not dropped
    monkeypatch.setattr(module, "shares_memory", lambda device: True)
    load(str(tiny_model_folder), LoadOptions())
    assert [file.name for file in dropped] == ["model.safetensors"]


def test_also_those_of_a_hub_cache_that_was_named(tiny_model_folder, tmp_path, monkeypatch):
    """Everything is looked for there: nothing of the model is in the usual cache, and the hub cannot be reached."""
    repository = tmp_path / "hub" / "models--somebody--tiny"
    shutil.copytree(tiny_model_folder, repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "usual"))
    monkeypatch.setattr(module, "shares_memory", lambda device: True)
    dropped = []
    monkeypatch.setattr(module, "drop_cached", lambda files: dropped.extend(files))
    loaded = load("somebody/tiny", LoadOptions(hf={"cache_dir": str(tmp_path / "hub")}))
    assert loaded.source.kind == "hub" and loaded.tokenizer("a")
    assert [file.name for file in dropped] == ["model.safetensors"] and tmp_path / "hub" in dropped[0].parents


@pytest.fixture(scope="module")
def some_300_mb(tmp_path_factory):
    """A checkpoint of five files, 284 MB in 16 bits."""
    shape = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 16}
    model = tiny.llama(**shape, num_key_value_heads=8, tied=False).to(torch.bfloat16)
    folder = tmp_path_factory.mktemp("large") / "model"
    model.save_pretrained(folder, max_shard_size="60MB")
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the kernel's count of anonymous memory is Linux's")
@pytest.mark.parametrize(
    ("storage", "dtype"),
    [("plain", "float32"), ("plain", "bfloat16"), ("nf4", "bfloat16"), ("int8", "bfloat16"), ("fp8", "bfloat16")],
)
def test_loading_holds_no_second_copy(storage, dtype, some_300_mb):
    """The most that is resident and cannot be dropped, against the model in the type that it is read in."""
    if storage in ("nf4", "int8"):
        pytest.importorskip("bitsandbytes", reason="the storage is bitsandbytes'")
    command = [sys.executable, str(MEASURE), str(some_300_mb), storage, dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    size = sum(file.stat().st_size for file in some_300_mb.glob("*.safetensors")) * (2 if dtype == "float32" else 1)
    assert found["peak_anonymous_bytes"] < 1.3 * size, found
    print(storage, dtype, found, f"{found['peak_anonymous_bytes'] / size:.2f} of the model in {dtype}")


def test_freed_memory_is_returned_while_a_block_runs(monkeypatch):
    import threading

    from hasten.loading import pages

    calls, again = [], threading.Event()

    def counted():
        calls.append(threading.current_thread().name)
        if len(calls) > 2:
            again.set()
        return True

    monkeypatch.setattr(pages, "trim", counted)
    with pages.returning():
        assert again.wait(10)
    assert calls[-1] == threading.current_thread().name, "once more at the end"
    assert not any(thread.name == "hasten-returning" for thread in threading.enumerate())
    monkeypatch.setattr(pages, "trim", lambda: False)
    with pages.returning():  # a system that cannot
        pass
