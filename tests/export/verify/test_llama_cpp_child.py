"""The program that asks llama.cpp: what it asks, and what it makes of the answers. A stand-in answers here."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from hasten.export.verify import llama_cpp, llama_cpp_child

ASKED = {"file": "x.gguf", "ids": [4, 5, 6], "lengths": [1, 2], "top": 2, "threads": 1, "limit_s": 60}


class Server:
    """Names the last token of a prompt and the next."""

    def __init__(self, settings):
        if settings.model.path != "x.gguf":
            raise RuntimeError("Failed to init server")

    def handle_completions(self, body):
        if body["prompt"] == [4, 5, 6]:
            return {"error": {"message": "exceeds the available context size"}}
        assert body["n_predict"] == 1 and not body["post_sampling_probs"]
        top = [{"id": body["prompt"][-1] + number, "logprob": -1.0 - number} for number in range(body["logprobs"])]
        return {"choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}]}


@pytest.fixture
def binding(monkeypatch):
    made = SimpleNamespace(
        Server=Server,
        CommonParams=lambda: SimpleNamespace(
            model=SimpleNamespace(), cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace()
        ),
        ggml_type=SimpleNamespace(GGML_TYPE_F32=0),
        llama_flash_attn_type=SimpleNamespace(LLAMA_FLASH_ATTN_TYPE_DISABLED=0),
    )
    monkeypatch.setitem(sys.modules, "xllamacpp", made)
    return made


def test_answers(binding):
    said = llama_cpp_child.answer(ASKED)
    assert said == {"top": [[[4, -1.0], [5, -2.0]], [[5, -1.0], [6, -2.0]]]}
    assert llama_cpp_child.answer({**ASKED, "file": "y.gguf"}) == {"refused": "Failed to init server"}
    assert "exceeds the available" in llama_cpp_child.answer({**ASKED, "lengths": [3]})["error"]


def test_one_text_on_the_cpu_behind_a_key(binding):
    made = llama_cpp_child.settings(binding, ASKED)
    assert made.n_ctx == 11 and made.n_gpu_layers == 0 and made.cpuparams.n_threads == 1
    assert len(made.api_keys[0]) > 20 and not made.ui


def test_it_ends_by_itself(tmp_path):
    """Whoever asked may have been killed meanwhile."""
    (tmp_path / "xllamacpp.py").write_text("import time\ntime.sleep(60)\n", "utf-8")
    code = f"import runpy, sys; sys.path.insert(0, {str(tmp_path)!r}); runpy.run_path(sys.argv[1], run_name='__main__')"
    command = [sys.executable, "-P", "-c", code, str(llama_cpp._CHILD)]
    asked = json.dumps({**ASKED, "limit_s": 0.5})
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1 and done.stdout == "" and "Timeout" in done.stderr
