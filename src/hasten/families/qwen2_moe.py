"""Qwen2 and Qwen1.5 with experts in place of the MLP, and one that every position goes through; no fast path."""

from hasten.families.base import Family, Gguf

FAMILY = Family(
    name="Qwen2 MoE",
    model_types=("qwen2_moe",),
    lora_targets=("q_proj", "k_proj", "v_proj", "o_proj"),
    gguf=Gguf(arch="qwen2moe", granted={"norm_topk_prob": False, "use_sliding_window": False}),
    tiny={
        "vocab_size": 131,
        "hidden_size": 48,
        "intermediate_size": 88,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 96,
    },
)
