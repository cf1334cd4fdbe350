"""Qwen3 (dense): LLaMA's arithmetic with a norm on every query and key head, and a head width of its own."""

from hasten.families.base import Blocks, Family, Gguf, Supported

FAMILY = Family(
    name="Qwen3",
    model_types=("qwen3",),
    gguf=Gguf(arch="qwen3", granted={"use_sliding_window": False}),
    blocks=Blocks(head_norms=("q_norm", "k_norm"), window="attention"),
    capabilities={
        "packing": Supported("tests/blocks/test_packed_attention.py::test_packed_equals_separate"),
        "fast": Supported("tests/families/test_parity.py::test_padded_rows_as_transformers"),
    },
    tiny={
        "vocab_size": 131,
        "hidden_size": 40,
        "intermediate_size": 88,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "max_position_embeddings": 96,
    },
)
