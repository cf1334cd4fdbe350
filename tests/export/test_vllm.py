"""What vLLM refuses is said before it is started, with the tensor and what to do; and vLLM itself, where it is."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from export.hf.conftest import adapt
from hasten.errors import CapabilityError
from hasten.export.hf.adapter import write_adapter
from hasten.export.hf.adapter_file import AdapterFile
from hasten.export.hf.base import open_model
from hasten.export.hf.ends import ends_of, vocabulary_rows
from hasten.export.hf.fp8 import write_fp8
from hasten.export.hf.write import write_model
from hasten.export.vllm import (
    adapter_problems,
    base_problems,
    model_problems,
    require_servable,
    serve_adapter,
    serve_model,
)
from hasten.export.weights import PlainFolder
from hasten.files import write_json
from support import judges, tiny

PYTHON = "HASTEN_VLLM_PYTHON"
"""Names the Python of an environment that has vLLM, for the last test."""


@pytest.fixture
def adapted(tmp_path):
    return lambda model, **lora: adapt(tmp_path / "base", model, tmp_path, **lora)


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({}, None),
        ({"use_rslora": True, "rank_pattern": {"q_proj": 8}}, None),
        ({"modules_to_save": ["lm_head"]}, r"lm_head.weight': a whole module.*modules_to_save.*merged"),
        ({"use_dora": True}, r"lora_magnitude_vector': the magnitudes of DoRA.*Export it merged"),
        ({"lora_bias": True}, r"lora_B.bias': trained biases"),
        ({"bias": "all"}, r"bias': a whole module|trained biases"),
        ({"trainable_token_indices": [3]}, r"trainable_tokens_delta': single rows"),
        ({"r": 513, "target_modules": ["down_proj"]}, r"adapter_config.json': rank 513.*up to 512"),
    ],
    ids=str,
)
def test_adapters(adapted, lora, said):
    model = tiny.llama(attention_bias=True, tied=False)
    case = adapted(model, **{"target_modules": ["q_proj"], **lora})
    found = adapter_problems(case.adapter, PlainFolder(case.base))
    if said is None:
        assert found == []
        require_servable(found)
        return
    with pytest.raises(CapabilityError, match=said):
        require_servable(found)


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "embed_tokens", "lm_head"]], ids=len)
def test_a_vocabulary_that_grew(adapted, targets):
    case = adapted(tiny.llama(tied=False), grown=131, save={"save_embedding_layers": True}, target_modules=targets)
    found = [str(problem) for problem in adapter_problems(case.adapter, PlainFolder(case.base))]
    assert any("131 tokens, and the base has 128" in each for each in found)


def test_an_adapter_that_began_elsewhere(adapted):
    case = adapted(tiny.llama(), target_modules=["q_proj"])
    (case.adapter / "adapter_beginning.safetensors").write_bytes(b"")
    with pytest.raises(CapabilityError, match="began as what 4 bits lost.*Export the adapter"):
        require_servable(adapter_problems(case.adapter))


def test_commands(adapted, tmp_path):
    case = adapted(tiny.llama(), target_modules=["q_proj"], r=20)
    assert serve_model(Path("my models/one")) == "vllm serve 'my models/one'"
    said = serve_adapter(case.adapter, "org/name", "mine")
    assert said == f"vllm serve org/name --enable-lora --max-lora-rank 32 --lora-modules mine={case.adapter}"
    config = json.loads((case.adapter / "adapter_config.json").read_text())
    write_json(case.adapter / "adapter_config.json", {**config, "r": 8})
    assert "--max-lora-rank" not in serve_adapter(case.adapter, "org/name")
    write_json(case.adapter / "adapter_config.json", {**config, "r": 8, "rank_pattern": {"q_proj": 600}})
    with pytest.raises(CapabilityError, match="rank 600.*up to 512"):
        serve_adapter(case.adapter, "org/name")


def test_commands_with_blanks(adapted, tmp_path):
    case = adapted(tiny.llama(), target_modules=["q_proj"])
    later = tmp_path / "it's mine" / "lora"
    said = serve_adapter(case.adapter, str(tmp_path / "my base"), "own", place=later)
    assert shlex.split(said) == [
        *("vllm", "serve", str(tmp_path / "my base"), "--enable-lora", "--lora-modules", f"own={later}")
    ]


@pytest.mark.parametrize(
    ("base", "said"),
    [("demo", "embedded model"), ("b.gguf", "a GGUF file"), ("ollama:a", "a GGUF file"), (None, "a GGUF")],
)
def test_bases_that_are_no_folder(adapted, tmp_path, base, said):
    case = adapted(tiny.llama(), target_modules=["q_proj"])
    (tmp_path / "latest").write_text("{}")  # a manifest of Ollama's
    base = base or str(tmp_path / "latest")
    with pytest.raises(CapabilityError, match=rf"base '{base}': .*{said}.*Export vllm instead, the merged model"):
        serve_adapter(case.adapter, base)
    assert len(base_problems(base)) == 1
    assert base_problems("org/name") == base_problems(str(case.base)) == []


@pytest.mark.parametrize(("targets", "grown"), [(["wte"], 140), (["wpe", "c_attn"], None)], ids=str)
def test_the_vocabulary_of_gpt2(adapted, targets, grown):
    config = CONFIG_MAPPING["gpt2"](vocab_size=131, n_embd=48, n_layer=1, n_head=4, n_positions=64)
    case = adapted(
        AutoModelForCausalLM.from_config(config), target_modules=targets, fan_in_fan_out=True, grown=grown,
        save={"save_embedding_layers": bool(grown)},
    )  # fmt: skip
    base = PlainFolder(case.base)
    assert ends_of(base.shapes)[0] == "transformer.wte.weight"
    assert vocabulary_rows(AdapterFile(case.adapter)) == grown
    said = [str(problem) for problem in adapter_problems(case.adapter, base)]
    assert any("140 tokens, and the base has 131" in each for each in said) is bool(grown)
    assert not any("64 tokens" in each for each in said)


@pytest.mark.parametrize(
    ("lora", "grown", "expected"),
    [
        ({"target_modules": ["q_proj"]}, None, None),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [3]}, None, None),
        ({"target_modules": ["q_proj"]}, 131, 131),
        ({"target_modules": ["q_proj"]}, 125, 125),
        ({"target_modules": ["embed_tokens"]}, 131, 131),
        ({"target_modules": ["lm_head"]}, None, 128),
        ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}, 131, 131),
    ],
    ids=str,
)
def test_the_rows_that_peft_loads_an_adapter_on(adapted, lora, grown, expected):
    from peft import PeftModel

    case = adapted(tiny.llama(tied=False), grown=grown, save={"save_embedding_layers": bool(grown)}, **lora)
    rows = vocabulary_rows(AdapterFile(case.adapter))
    assert rows == expected
    base = AutoModelForCausalLM.from_pretrained(case.base)
    if rows is not None:
        base.resize_token_embeddings(rows, mean_resizing=False)
    PeftModel.from_pretrained(base, str(case.adapter))


def test_model_folders(adapted, tmp_path):
    case = adapted(tiny.llama(tied=False), target_modules=["q_proj"])
    write_model(open_model(case.adapter), tmp_path / "plain")
    write_fp8(open_model(case.adapter), tmp_path / "eight")
    assert model_problems(tmp_path / "plain") == model_problems(tmp_path / "eight") == []
    folder = tmp_path / "plain"
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "vocab_size": 100, "architectures": None})
    (folder / "tokenizer.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    said = [str(problem) for problem in model_problems(folder)]
    for part in ("holds adapter_config.json", "128 rows, and vocab_size is 100", "no tokenizer", "no architectures"):
        assert any(part in each for each in said)
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in str(model_problems(folder)[-1])


_JUDGE = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

if __name__ == "__main__":
    model, adapter, prompts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    told = {"dtype": "float32", "max_model_len": 256, "enforce_eager": True, "max_num_seqs": 4}
    llm = LLM(model=model, enable_lora=bool(adapter), max_lora_rank=16, **told)
    request = LoRARequest("own", 1, adapter) if adapter else None
    found = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=16), lora_request=request)
    print("FOUND", json.dumps([list(each.outputs[0].token_ids) for each in found]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_vllm_says_what_the_live_model_says(demo_model_folder, tmp_path, kind):
    python = os.environ.get(PYTHON)
    if not python:
        judges.absent("vllm", f"vLLM needs an environment of its own: {PYTHON} names its Python")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(demo_model_folder, dtype=torch.float32)
    base = tmp_path / "base"
    lora = {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    case = adapt(base, model, tmp_path, strength=0.02, **lora)
    tokenizer = AutoTokenizer.from_pretrained(demo_model_folder)
    tokenizer.save_pretrained(base)
    prompts = ["The capital of France is", "def fibonacci(n):"]
    expected, without = [], []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        told = {"max_new_tokens": 16, "do_sample": False}
        expected.append(case.live.generate(input_ids=ids, **told)[0, ids.shape[1] :].tolist())
        with case.live.disable_adapter():
            without.append(case.live.generate(input_ids=ids, **told)[0, ids.shape[1] :].tolist())
    assert expected != without
    opened, out = open_model(case.adapter), tmp_path / "out"
    written = write_model(opened, out, dtype="float32") if kind == "merged" else write_adapter(opened, out)
    folder, adapter = (written.folder, "") if kind == "merged" else (base, written.folder)
    (tmp_path / "judge.py").write_text(_JUDGE)
    command = [python, str(tmp_path / "judge.py"), str(folder), str(adapter), json.dumps(prompts)]
    settings = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    own = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TRITON_INTERPRET")}
    done = subprocess.run(command, env={**own, **settings}, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    assert json.loads(line.removeprefix("FOUND ")) == expected
