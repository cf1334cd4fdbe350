"""The embedded model through the compatible API: minutes, not seconds."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.slow


@pytest.fixture
def rows(tmp_path):
    pytest.importorskip("trl")
    pytest.importorskip("bitsandbytes")
    generator = random.Random(0)
    path = tmp_path / "rows.jsonl"
    pairs = [(generator.randint(1, 99), generator.randint(1, 99)) for _ in range(100)]
    lines = [
        json.dumps({"text": f"<human>: What is {a} plus {b}?\n<bot>: The sum of {a} and {b} is {a + b}."})
        for a, b in pairs
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def shallow(demo_model_folder, tmp_path):
    """The embedded model's first four layers of thirty: its widths and tokenizer, in a third of the time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "shallow"
    AutoModelForCausalLM.from_pretrained(demo_model_folder, num_hidden_layers=4).save_pretrained(folder)
    AutoTokenizer.from_pretrained(demo_model_folder).save_pretrained(folder)
    return folder


def losses(text):
    return [float(value) for value in re.findall(r"'loss': '?([0-9.]+)", text)]


def run(command, folder):
    folder.mkdir()
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def trained(folder):
    return load_file(folder / "outputs" / "checkpoint-3" / "adapter_model.safetensors")


def test_the_same_check_both_ways(rows, shallow, tmp_path):
    """The same losses, and the same adapters bit by bit, after three steps, of which the first has a rate of zero."""
    arguments, folders = (rows, "3", shallow), (tmp_path / "ours", tmp_path / "theirs")
    ours = run([sys.executable, EXAMPLES / "spark_check.py", *arguments], folders[0])
    command = [sys.executable, "-m", "hasten", "run", "--json", EXAMPLES / "spark_check_unsloth.py", *arguments]
    theirs = run(command, folders[1])
    first, second = losses(ours.stdout), losses(theirs.stderr)
    assert len(first) == 3 and len(set(first)) > 1 and first == second
    one, other = map(trained, folders)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert all(value.any() for name, value in one.items() if "lora_B" in name)
    assert "parameters trained" in ours.stderr
    result = json.loads(theirs.stdout)
    assert result["ok"] is True and result["metrics"]["train_runtime"] > 0


def test_the_examples_differ_in_imports_only():
    def body(name):
        text = (EXAMPLES / name).read_text(encoding="utf-8")
        return [
            line
            for line in text.splitlines()
            if line.strip() and not line.startswith(("from ", "    python", "    hasten"))
        ]

    assert body("spark_check.py") == body("spark_check_unsloth.py")


def test_merged_equals_live(tmp_path):
    from transformers import AutoModelForCausalLM

    from compat.conftest import moved
    from hasten import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained("demo", load_in_4bit=False)
    model = FastLanguageModel.get_peft_model(model, r=8, lora_alpha=32, loftq_config=None)
    for weight in moved(model).parameters():
        if weight.requires_grad:
            weight.data *= 0.2
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        live = model.for_inference()(**inputs).logits
    model.save_pretrained_merged(str(tmp_path / "exact"), tokenizer, dtype="float32")
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "exact").eval()(**inputs).logits
    assert (found - live).abs().max() <= 1e-5 * live.abs().max()
