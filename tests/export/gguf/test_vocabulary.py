"""Tokenizers: a token for each row, kinds as llama.cpp takes them, and nothing that has no row."""

import json

import pytest
from gguf import TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from hasten.errors import CapabilityError, ModelError
from hasten.export.gguf.vocabulary import read
from support import tiny

PIECES = {"<unk>": 0, "<s>": 1, "</s>": 2, "<0x0A>": 3, "▁a": 4, "ab": 5, "▁ab": 6, "▁": 7, "a": 8, "b": 9}


def edited(folder, edit):
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    edit(content)
    file.write_text(json.dumps(content), encoding="utf-8")
    return folder


def pieces(folder):
    """A SentencePiece-like tokenizer."""
    merges = [("▁", "a"), ("a", "b"), ("▁", "ab"), ("▁a", "b")]
    made = Tokenizer(models.BPE(PIECES, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens([AddedToken(text, normalized=False) for text in ("<s>", "</s>")])
    made.add_special_tokens([AddedToken("<|end|>", normalized=False, rstrip=True)])
    made.add_tokens([AddedToken("▁▁", normalized=False)])
    made.save(str(folder / "tokenizer.json"))
    return folder


def test_bytes(tmp_path):
    made = tiny.tokenizer()
    made.add_tokens(["<think>", "<|looks|>", "▁x"])
    made.save_pretrained(tmp_path)
    words = read(tmp_path, 140)
    assert (words.model, words.cut, words.scores, words.blank_first) == ("gpt2", "gpt-2", None, None)
    assert len(words.tokens) == len(words.kinds) == 140
    assert words.tokens[:3] == list(tiny.SPECIALS) and words.kinds[:4] == [TokenType.CONTROL] * 3 + [TokenType.NORMAL]
    assert words.tokens[128:132] == ["<think>", "<|looks|>", " x", "[PAD131]"]
    assert words.kinds[128:132] == [
        TokenType.USER_DEFINED, TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED
    ]  # fmt: skip
    stored = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["merges"]
    assert words.merges == [" ".join(pair) for pair in stored]


def test_older_files_write_a_pair_as_one_text(tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path)
    before = read(tmp_path, 128)
    edited(tmp_path, lambda one: one["model"].update(merges=[" ".join(pair) for pair in one["model"]["merges"]]))
    assert read(tmp_path, 128) == before


def test_characters_with_bytes_for_the_rest(tmp_path):
    words = read(pieces(tmp_path), 13)
    assert (words.model, words.cut, words.merges, words.blank_first) == ("llama", "default", [], True)
    assert words.takes_blanks
    assert words.tokens[-3:] == ["<|end|>", "  ", "[PAD12]"]
    kinds = {text: kind.name for text, kind in zip(words.tokens, words.kinds, strict=True)}
    assert [kinds[text] for text in ("<unk>", "<s>", "<0x0A>", "▁a", "  ", "[PAD12]")] == [
        "UNKNOWN", "CONTROL", "BYTE", "NORMAL", "USER_DEFINED", "UNUSED"
    ]  # fmt: skip
    assert words.scores == [-1.0 * 0 + 4.0, -1000.0, -1000.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -1000.0, -1000.0,
                            -10000.0]  # fmt: skip


def test_a_token_without_a_row(tmp_path):
    made = tiny.tokenizer()
    made.add_tokens(["<one>", "<two>"])
    made.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"token '<one>' has id 128, and 1 more.*has 128 rows.*Resize the model's"):
        read(tmp_path, 128)
    assert read(tmp_path, 128, beyond=("<one>", "<two>")).tokens[-1] != "[PAD127]"


def test_other_kinds_of_tokenizers(tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path)
    edited(tmp_path, lambda one: one["model"].update(type="Unigram"))
    with pytest.raises(CapabilityError, match=r"a tokenizer of kind Unigram.*Export it to Hugging Face"):
        read(tmp_path, 128)


def test_files_that_are_missing_or_damaged(tmp_path):
    with pytest.raises(ModelError, match=r"tokenizer.json: it is not there.*Save the tokenizer"):
        read(tmp_path, 128)
    for content in ("{", "[]", '{"model": {"vocab": []}}'):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ModelError, match=r"tokenizer.json: no tokenizer"):
            read(tmp_path, 128)
