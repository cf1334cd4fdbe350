"""The small models and tokenizers of the tests, made from a seed in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PAD, BOS, EOS = 0, 1, 2
SPECIALS = ("<|pad|>", "<|im_start|>", "<|im_end|>")
_SENTENCES = ("the red dog and the green cat", "one two three, say blue", "what does the assistant answer to the user?")


def llama(*, vocab: int = 128, tied: bool = True, seed: int = 0, **changes: Any) -> Any:
    """`TL`: a random two-layer Llama with grouped-query attention."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    fields: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**fields, **changes})).eval()


def of_config(config: Any, seed: int = 0) -> Any:
    """A random model of any causal language model's configuration."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval()


def tokenizer() -> Any:
    """A byte-level BPE of 128 tokens over printable ASCII, with ChatML markers as begin and end tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    printable = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]  # how the pre-tokenizer spells blank and newline
    trainer = trainers.BpeTrainer(
        vocab_size=128, special_tokens=list(SPECIALS), initial_alphabet=printable, show_progress=False
    )
    backend.train_from_iterator(_SENTENCES * 4, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=SPECIALS[PAD], bos_token=SPECIALS[BOS], eos_token=SPECIALS[EOS]
    )
    made.chat_template = CHATML
    return made


def with_bos(original: Any) -> Any:
    """A copy of a tokenizer whose backend puts the begin token in front of every text (`TOK-BOS`)."""
    import copy

    from tokenizers import processors

    made = copy.deepcopy(original)
    token, number = made.bos_token, made.bos_token_id
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, number)]
    )
    return made


def save_model(folder: Path, model: Any = None) -> Path:
    """A complete model folder."""
    (model or llama()).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
