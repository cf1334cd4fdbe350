"""What ``--to`` says, and what it cannot say."""

import pytest

from hasten.errors import ConfigError
from hasten.export.targets import Wanted, parse


def test_everything():
    assert parse(["hf", "gguf:Q4_K_M, q8_0", "gguf:q4_k,f16"]) == Wanted(hf="", gguf=("q4_k_m", "q8_0", "f16"))
    assert parse(["hf:float32", "fp8", "lora", "gguf-lora"]) == Wanted(
        hf="float32", fp8=True, lora=True, gguf_lora=True
    )
    assert parse(["gguf", "gguf:dynamic"]).gguf == ("q4_k_m", "dynamic")
    assert parse(["ollama"]) == Wanted(gguf=("q4_k_m",), ollama="")
    assert parse(["ollama:me/x:v1", "gguf:q8_0"]) == Wanted(gguf=("q8_0",), ollama="me/x:v1")
    assert parse(["hf", "HF:float16", "hf", "hf:float16"]) == Wanted(hf="float16")
    assert parse(["vllm", "vllm-lora"]) == Wanted(hf="", lora=True, vllm=True, vllm_lora=True)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([], "nothing.*For example"),
        (["ggfu"], "'ggfu'.*Did you mean 'gguf'"),
        (["gguf:q4_k_x"], "'q4_k_x'.*Did you mean 'q4_k_"),
        (["gguf:dynmic"], "'dynmic'.*Known: .*, dynamic.*Did you mean 'dynamic'"),
        (["hf:float8"], "'hf:float8'.*Dtypes: float32"),
        (["fp8:e4m3"], "'fp8:e4m3'.*takes nothing after it.*Use 'fp8'"),
        (["hf:float16", "hf:bfloat16"], "'hf:float16' and 'hf:bfloat16'. An export makes one 'hf'.*another folder"),
        (["ollama:a", "ollama", "ollama:b"], "'ollama:a' and 'ollama:b'.*Name one of them"),
        (["ollama:no spaces"], "the Ollama model's name: 'no spaces'"),
    ],
)
def test_mistakes(texts, said):
    with pytest.raises(ConfigError, match=said):
        parse(texts)
