"""Ways of cutting text: named by their rules, as the tokenizers' authors publish them."""

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from hasten.errors import CapabilityError
from hasten.export.gguf.cuts import GPT_4O, LLAMA_3, QWEN_2, TEKKEN, cut_of

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


def tokenizer(*steps, whole_words=False, normalizer=None):
    pre = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": list(steps)}
    return {"model": {"ignore_merges": whole_words}, "pre_tokenizer": pre, "normalizer": normalizer}


def split(pattern, behavior="Isolated"):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


WORDS = {**BYTES, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (tokenizer(WORDS), "gpt-2"),
        (tokenizer(DIGITS, WORDS), "smollm"),
        (tokenizer(split(LLAMA_3), BYTES, whole_words=True), "llama-bpe"),  # LLaMA 3
        (tokenizer(split(LLAMA_3), BYTES), "dbrx"),  # Phi-4
        (tokenizer(split(QWEN_2), BYTES, normalizer={"type": "NFC"}), "qwen2"),  # Qwen 2, 2.5, 3, DeepSeek's distills
        (tokenizer(split(TEKKEN), BYTES, whole_words=True), "tekken"),  # Mistral Nemo
        (tokenizer(split(GPT_4O), BYTES), "gpt-4o"),  # Phi-4 mini
    ],
)
def test_known_cuts(given, name):
    assert cut_of(given, "x") == name


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (tokenizer(split(r"\p{N}"), BYTES), r"cuts text by \['\\+p\{N\}'\]"),
        (tokenizer(split(LLAMA_3, "Removed"), BYTES), "Removed"),
        (tokenizer({**WORDS, "add_prefix_space": True}), "a blank first"),
        (tokenizer(WORDS, whole_words=True), "takes whole words"),
        (tokenizer(WORDS, normalizer={"type": "Lowercase"}), "normalizer Lowercase"),
        (tokenizer({"type": "Digits", "individual_digits": False}, WORDS), "runs of digits"),
        (tokenizer({"type": "Whitespace"}), "Whitespace"),
    ],
)
def test_cuts_without_a_name(given, said):
    with pytest.raises(CapabilityError, match=said) as caught:
        cut_of(given, "tokenizer.json")
    assert "Export it to Hugging Face or vLLM" in str(caught.value)


@pytest.mark.parametrize("pattern", [LLAMA_3, QWEN_2, TEKKEN, GPT_4O])
def test_the_patterns_are_patterns(pattern):
    cut = Tokenizer(models.BPE())
    cut.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    text = "It's 1234 AppleWorks, /path\n\n  end"
    parts = [part for part, _ in cut.pre_tokenizer.pre_tokenize_str(text)]
    assert "".join(parts) == text
    assert ("123" in parts) == (pattern in (LLAMA_3, GPT_4O))
    assert (" Apple" in parts) == (pattern in (TEKKEN, GPT_4O))
