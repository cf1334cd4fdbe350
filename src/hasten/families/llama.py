"""LLaMA 2 to 3.3, SmolLM2, DeepSeek-R1-Distill-Llama: the pattern the others vary."""

from hasten.families.base import Blocks, Family, Gguf, Supported

FAMILY = Family(
    name="LLaMA",
    model_types=("llama",),
    gguf=Gguf(arch="llama", permuted=True, sizes=True),
    blocks=Blocks(),
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
    },
)
