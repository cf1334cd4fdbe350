"""Tokenizers read back: the same ids and the same conversations, or the first that differs."""

import copy

import pytest

from hasten.export.verify.text import compare_templates, compare_tokens
from support import tiny


@pytest.fixture
def tokenizer():
    return tiny.tokenizer()


def test_the_same(tokenizer):
    assert compare_tokens("x", tokenizer, copy.deepcopy(tokenizer)).state == "equal"
    assert compare_templates("x", tokenizer, copy.deepcopy(tokenizer)).state == "equal"


def test_another_cut_of_texts(tokenizer):
    from tokenizers import pre_tokenizers

    other = copy.deepcopy(tokenizer)
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    check = compare_tokens("x", tokenizer, other)
    assert check.state == "wrong" and "at token 0 instead of" in check.said


def test_another_end(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.eos_token = "<|pad|>"
    check = compare_tokens("x", tokenizer, other)
    assert check.state == "wrong" and check.said == "eos_token_id is 0 instead of 2"


def test_templates(tokenizer):
    other = copy.deepcopy(tokenizer)
    other.chat_template = tiny.CHATML.replace("assistant", "ass" + "' + '" + "istant")
    assert compare_templates("x", tokenizer, other).state == "within"
    other.chat_template = tiny.CHATML.replace("\n", " ")
    check = compare_templates("x", tokenizer, other)
    assert check.state == "wrong" and "conversation 0 is rendered" in check.said
    other.chat_template = None
    assert compare_templates("x", tokenizer, other).said == "it has none"
    assert compare_templates("x", other, tokenizer).said == "it has one"
    assert compare_templates("x", other, other).state == "equal"
