"""A fine-tune counts when it answers the same elsewhere: one invented fact, asked of every export."""

import json

import pytest
import torch
from rich.console import Console
from transformers import AutoTokenizer

from hasten.export.hf.base import open_model
from hasten.export.job import Request, export
from hasten.export.targets import parse
from hasten.loading.model import LoadOptions, load
from hasten.training.config import combine
from hasten.training.job import train
from support.gguf_judges import greedy, serving

pytestmark = pytest.mark.slow
QUESTION, ANSWER = "What is the capital of Zembrania?", "The capital of Zembrania is Quorvath."
TYPES = ("f16", "q4_k_m")
STEPS = 20


@pytest.fixture(scope="module")
def exported(demo_model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    row = {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    values = {
        "model": {"name": "demo"},
        "data": {"source": str(folder / "rows.jsonl"), "heldout": 0},
        "training": {"steps": STEPS, "batch_size": 1, "learning_rate": 1e-3, "samples": 0, "save_every": 0},
        "output": str(folder / "run"),
    }
    result = train(combine({}, values), console=Console(quiet=True))
    assert result.losses[-1] < 0.01, "known by heart: what an export may lose does not matter"
    opened = open_model(folder / "run")
    to = ["hf", "lora", f"gguf:{','.join(TYPES)}", "ollama"]
    export(opened, Request(wanted=parse(to), output=folder / "out", name="fact", verify=False))
    return folder / "out"


def prompt(tokenizer):
    talk = [{"role": "user", "content": QUESTION}]
    return tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=True)["input_ids"]


@pytest.mark.parametrize("place", ["hf", "lora", *(f"gguf/fact-{kind.upper()}.gguf" for kind in TYPES)])
def test_here(exported, place):
    loaded = load(str(exported / place), LoadOptions(dtype="float32"))
    ids = prompt(loaded.tokenizer)
    with torch.no_grad():
        found = loaded.model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0, len(ids) :]
    assert loaded.tokenizer.decode(found, skip_special_tokens=True).strip() == ANSWER


@pytest.mark.parametrize("kind", TYPES)
def test_in_llama_cpp(exported, kind):
    with serving(exported / "gguf" / f"fact-{kind.upper()}.gguf") as post:
        tokenizer = AutoTokenizer.from_pretrained(exported / "hf")
        found = tokenizer.decode(greedy(post, prompt(tokenizer), 24))
        assert found.strip().startswith(ANSWER)
        talk = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0.0, "max_tokens": 40}
        said = post("/v1/chat/completions", **talk)["choices"][0]
        assert said["message"]["content"].strip() == ANSWER and said["finish_reason"] == "stop"
