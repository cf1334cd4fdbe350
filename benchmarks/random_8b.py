"""A model folder of Llama 3.1 8B's shapes with random weights, and a rank-16 adapter for it, in PEFT's layout.

Written file by file from one pool of normal values that each weight begins elsewhere in: what encoders and merges do
does not depend on which values these are, and 16 GB are written as fast as the disk takes them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from model_shapes import SHAPES
from safetensors.torch import save_file

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    **{name: value for name, value in SHAPES["8b"].items() if name != "rope_theta"},
    "head_dim": 128,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": SHAPES["8b"]["rope_theta"],
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_POOL = 2**26
_DEVIATION = 0.02


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every weight."""
    width, mlp, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, width)}
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}."
        found |= {f"{layer}self_attn.{part}_proj.weight": (width, width) for part in "qo"}
        found |= {f"{layer}self_attn.{part}_proj.weight": (keys, width) for part in "kv"}
        found |= {f"{layer}mlp.{part}_proj.weight": (mlp, width) for part in ("gate", "up")}
        found[f"{layer}mlp.down_proj.weight"] = (width, mlp)
        found |= {f"{layer}{part}_layernorm.weight": (width,) for part in ("input", "post_attention")}
    return {**found, "model.norm.weight": (width,), "lm_head.weight": (rows, width)}


def write_base(folder: Path, dtype: torch.dtype, **changes: Any) -> int:
    """A model folder; how many weights it has."""
    folder.mkdir(parents=True)
    config = {**CONFIG, **changes, "dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    _tokenizer(folder)
    pool = _Pool(dtype)
    places: dict[str, str] = {}
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes(config).items():
        part = name.split(".")[2] if ".layers." in name else name.split(".")[-2]
        groups.setdefault(f"model-{part}.safetensors", {})[name] = shape
    for file, names in groups.items():
        save_file({name: pool.take(shape) for name, shape in names.items()}, folder / file, {"format": "pt"})
        places |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    return sum(torch.Size(shape).numel() for shape in shapes(config).values())


def write_adapter(folder: Path, base: Path, rank: int = 16) -> None:
    """LoRA on all seven projections of every layer, with factors that are no zeros."""
    folder.mkdir(parents=True)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    pool, state = _Pool(torch.float32), {}
    for name, shape in shapes(config).items():
        if "_proj." in name:
            module = "base_model.model." + name.removesuffix(".weight")
            state[f"{module}.lora_A.weight"] = pool.take((rank, shape[1]))
            state[f"{module}.lora_B.weight"] = pool.take((shape[0], rank))
    save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})
    targets = sorted({name.split(".")[-2] for name in shapes(config) if "_proj." in name})
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "bias": "none"}
    settings |= {"target_modules": targets, "base_model_name_or_path": str(base.absolute())}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")


class _Pool:
    def __init__(self, dtype: torch.dtype) -> None:
        drawn = torch.randn(_POOL, generator=torch.Generator().manual_seed(0))
        self._values, self._at = (drawn * _DEVIATION).to(dtype), 0

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """The next values, from the pool's begin again at its end."""
        count = torch.Size(shape).numel()
        self._at = (self._at + 1_000_003) % _POOL
        out, done = torch.empty(count, dtype=self._values.dtype), 0
        while done < count:
            part = self._values[self._at : self._at + count - done]
            out[done : done + len(part)] = part
            done, self._at = done + len(part), (self._at + len(part)) % _POOL
        return out.view(shape)


def _tokenizer(folder: Path) -> None:
    """A byte-level BPE without merges: rows that no token has are written as unused."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(
        models.BPE({text: number for number, text in enumerate(["<|begin|>", "<|end|>", *letters])}, [])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|begin|>", eos_token="<|end|>")
    made.save_pretrained(folder)
