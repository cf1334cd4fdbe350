"""Qwen2 and Qwen2.5, DeepSeek-R1-Distill-Qwen: LLaMA's arithmetic with biases on q, k and v; often tied embeddings."""

from hasten.families.base import Blocks, Family, Gguf, Supported

FAMILY = Family(
    name="Qwen2",
    model_types=("qwen2",),
    gguf=Gguf(arch="qwen2", granted={"use_sliding_window": False}),
    blocks=Blocks(window="attention"),
    capabilities={
        "packing": Supported("tests/blocks/test_packed_attention.py::test_packed_equals_separate"),
        "fast": Supported("tests/families/test_parity.py::test_padded_rows_as_transformers"),
    },
    tiny={
        "vocab_size": 131,
        "hidden_size": 48,
        "intermediate_size": 88,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
        "tie_word_embeddings": True,
    },
)
