"""Tokenizers: a token for each row, kinds as llama.cpp takes them, and nothing that has no row."""

import json
import shutil

import pytest
from gguf import TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from hasten.errors import CapabilityError, ModelError
from hasten.export.gguf.metadata import DIFFERENCES
from hasten.export.gguf.vocabulary import read
from hasten.export.gguf.write import write_gguf
from hasten.export.weights import PlainFolder
from support import judges, tiny
from support.gguf_judges import convert, differences, family_folder

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
    assert words.scores == [4.0, -1000.0, -1000.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -1000.0, -1000.0,
                            -10000.0]  # fmt: skip


def test_a_token_without_a_row(tmp_path):
    made = tiny.tokenizer()
    made.add_tokens(["<one>", "<two>"])
    made.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"token '<one>' has id 128, and 1 more.*has 128 rows.*Resize the model's"):
        read(tmp_path, 128)
    assert read(tmp_path, 128, beyond=("<one>", "<two>")).tokens[-1] != "[PAD127]"
    words = read(tmp_path, 129, beyond=("<one>", "<two>"))  # the first has one
    assert (words.tokens[-1], words.kinds[-1]) == ("<one>", TokenType.USER_DEFINED)


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


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "phi3", "gemma3_text"])
def test_sentencepieces_own_file_as_llama_cpps_converter_has_it(model_type, tmp_path):
    """The converter reads tokenizer.model, this tokenizer.json: the same tokens and scores."""
    sentencepiece = judges.package("sentencepiece")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{tiny.__doc__} {number} {decoders.__doc__} {pytest.__doc__}" for number in range(400)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "tokenizer"), model_type="bpe", vocab_size=400,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    own = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ids = {own.id_to_piece(number): number for number in range(own.vocab_size())}
    merges = []
    for token, number in ids.items():
        if not (own.is_control(number) or own.is_unknown(number) or own.is_byte(number)):
            pairs = [(token[:place], token[place:]) for place in range(1, len(token))]
            known = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
            merges += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    made = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    blanks = normalizers.Replace(" ", "▁")
    gemma = model_type == "gemma3_text"
    made.normalizer = blanks if gemma else normalizers.Sequence([normalizers.Prepend("▁"), blanks])
    made.add_special_tokens([AddedToken(text, normalized=False) for text in ("<unk>", "<s>", "</s>")])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    folder = family_folder(tmp_path / "model", model_type, tokenizer=fast, vocab_size=405)
    shutil.copy(tmp_path / "tokenizer.model", folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "LlamaTokenizer"}))
    convert({folder: tmp_path / "theirs.gguf"})
    written = write_gguf(PlainFolder(folder), {"f16": tmp_path / "ours.gguf"})["f16"]
    facts, tensors = differences(tmp_path / "theirs.gguf", written.path)
    assert tensors == []
    named = ("add_bos_token", "add_space_prefix", "scores", "token_type")
    assert set(facts) <= {*(f"tokenizer.ggml.{name}" for name in named), "general.name"} <= set(DIFFERENCES)
    if "tokenizer.ggml.scores" in facts:  # special tokens, which nothing merges, have another value
        scores = enumerate(zip(*facts["tokenizer.ggml.scores"], strict=True))
        assert [place for place, pair in scores if len(set(pair)) > 1] == [0, 1, 2]
    if "tokenizer.ggml.token_type" in facts:
        kinds = zip(*facts["tokenizer.ggml.token_type"], strict=True)
        assert {pair for pair in kinds if len(set(pair)) > 1} == {(TokenType.UNKNOWN, TokenType.CONTROL)}
