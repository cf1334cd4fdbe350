"""Mistral 7B, Nemo, Small (text): LLaMA's arithmetic; some with a sliding window or another head width."""

from hasten.families.base import Blocks, Family, Gguf, Supported

FAMILY = Family(
    name="Mistral",
    model_types=("mistral",),
    gguf=Gguf(arch="llama", permuted=True, sizes=True, window="context"),
    blocks=Blocks(window="config"),
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
        "head_dim": 8,
        "sliding_window": 11,
        "max_position_embeddings": 96,
    },
)
