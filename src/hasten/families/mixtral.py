"""Mixtral: LLaMA's attention, and experts in place of the MLP; no fast path."""

from hasten.families.base import Family, Gguf

FAMILY = Family(
    name="Mixtral",
    model_types=("mixtral",),
    lora_targets=("q_proj", "k_proj", "v_proj", "o_proj"),
    gguf=Gguf(arch="llama", permuted=True, sizes=True),
    tiny={
        "vocab_size": 131,
        "hidden_size": 48,
        "intermediate_size": 88,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 96,
    },
)
