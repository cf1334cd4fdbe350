"""Phi-3 and Phi-3.5: LLaMA's arithmetic with q/k/v in one matrix and gate/up in another.

People ask for the split names (NVIDIA's DGX Spark script does); they are mapped to the fused modules and said so.
"""

from hasten.families.base import Blocks, Family, Gguf, Supported

FAMILY = Family(
    name="Phi-3",
    model_types=("phi3",),
    lora_targets=("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    fused={"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")},
    gguf=Gguf(arch="phi3", window="always", long_factors=True),
    blocks=Blocks(qkv=("qkv_proj",), gate_up=("gate_up_proj",), window="config"),
    capabilities={"packing": Supported("tests/blocks/test_packed_attention.py::test_packed_equals_separate")},
    tiny={
        "vocab_size": 131,
        "hidden_size": 48,
        "intermediate_size": 88,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
)
