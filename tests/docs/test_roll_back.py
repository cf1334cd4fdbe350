"""Everything that the commands write lies in the working folder or in the cache, and uninstalling leaves nothing."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

from support import tiny
from support.documents import ROOT

pytestmark = pytest.mark.slow

COMMANDS = [
    ["data", "rows.jsonl", "--model", "model", "--max-length", "256"],
    ["train", "--model", "model", "--data", "rows.jsonl", "--data.heldout", "1", "--steps", "2", "--output", "runs/a",
     "--training.save_every", "1"],
    ["chat", "runs/a/adapter", "--message", "hi", "--max-tokens", "2"],
    ["export", "runs/a", "--to", "gguf:q8_0", "--to", "hf", "--to", "ollama", "--to", "vllm-lora"],
    ["quantize", "model", "--output", "quantized", "--tokens", "256", "--no-stream"],
    ["runs"],
    ["show", "a"],
    ["cache"],
]  # fmt: skip
SCRIPT = """
import json, pathlib, sys
from hasten.cache import CACHE
from hasten.cli.main import main

def run(words):
    try:
        main(words)
    except SystemExit as left:
        assert not left.code, words

for words in json.loads(sys.argv[1]):
    run(words)
file = next(pathlib.Path("runs/a/export").rglob("*.gguf"))
run(["chat", str(file), "--message", "hi", "--max-tokens", "2"])
files = [str(path) for path in CACHE.rglob("*") if path.is_file()]
run(["cache", "clear", "--yes"])
print(json.dumps(files), file=open("cached.json", "w"))
"""


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_nothing_is_written_outside_the_working_folder_and_the_cache(tmp_path):
    pytest.importorskip("bitsandbytes", reason="`hasten quantize` needs bitsandbytes")
    places = {name: tmp_path / name for name in ("home", "work", "temporary", "xdg")}
    for folder in places.values():
        folder.mkdir()
    model = tiny.llama(max_position_embeddings=512)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(10)
    tiny.save_model(places["work"] / "model", model)
    rows = [{"question": f"say {word}", "answer": f"{word} {word}"} for word in "red green blue one two".split()]
    (places["work"] / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    surroundings = {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("XDG_", "HF_HOME", "HF_HUB_CACHE"))
        },
        "HOME": str(places["home"]),
        "XDG_CACHE_HOME": str(places["xdg"]),
        "TMPDIR": str(places["temporary"]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(COMMANDS)],
        cwd=places["work"], env=surroundings, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    cached = json.loads((places["work"] / "cached.json").read_text("utf-8"))
    cache = places["home"] / ".cache" / "hasten"
    assert {Path(file).relative_to(cache).parts[0] for file in cached} == {"models", "data"}
    left = {name: files_in(places[name]) for name in ("home", "xdg", "temporary")}
    assert left == {"home": [], "xdg": [], "temporary": []}
    assert not cache.exists()
    written = {Path(file).parts[0] for file in files_in(places["work"])}
    assert written == {"model", "rows.jsonl", "cached.json", "runs", "quantized"}


def test_uninstalling_leaves_nothing(tmp_path):
    place = tmp_path / "venv"
    venv.create(place, system_site_packages=False, with_pip=True)
    pip = [place / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--no-cache-dir", "-q"]
    before = files_in(place)
    built = subprocess.run(
        [*pip, "install", "--no-deps", "--no-compile", ROOT], capture_output=True, text=True, timeout=600, check=False
    )
    if "hatchling" in built.stderr and built.returncode:
        pytest.skip("hasten's build tool, hatchling, cannot be downloaded here")
    assert built.returncode == 0, built.stderr
    assert (place / "bin" / "hasten").is_file() and files_in(place) != before
    subprocess.run([*pip, "uninstall", "--yes", "hasten"], check=True, timeout=120)
    assert [name for name in files_in(place) if "__pycache__" not in name] == [
        name for name in before if "__pycache__" not in name
    ]
