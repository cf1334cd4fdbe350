"""Tokenizers from GGUF vocabularies: equal to those they were written from, and to llama.cpp's own."""

import json
import urllib.request

import pytest
from tokenizers import Tokenizer

from hasten.errors import ModelError
from hasten.loading import gguf
from hasten.loading.gguf_cuts import CUTS
from hasten.loading.gguf_file import open_gguf
from hasten.loading.gguf_tokenizer import end_tokens, tokenizer_files
from support import gguf_models, judges, tiny

TEXTS = (
    "Hello world",
    "  two  blanks, a   3 4  5",
    "x 1234567890 12 345 1 12 123 1234",
    "\n\n\nA\n  B\t\tC \r\n d\n\n",
    "don't DON'T I'll we'Ve it's ' ' '' ''s 'S",
    "Straße über Ångström naïve",
    "Привет, мир! Это тест.",
    "مرحبا بالعالم ١٢٣ שלום עולם",
    "हिन्दी में लिखा हुआ १२३ ไทยภาษา ๑๒๓",
    "こんにちは世界。カタカナ漢字 中文测试，标点！？ 한국어 문장입니다.",
    "😀👩‍👩‍👧 🇩🇪 ❤️ α→β ∑∫√ ½ ﬁ ²³¹ Ⅷ",
    "def f(x):\n    return x**2  # ok\n\n\n",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n  a<|endoftext|>b  c",
    "\x00\x01\x7f x \u200b\u00a0\u3000wide <0x0A>",
    "https://example.com/a?b=c&d=%20 ____----==== CamelCaseWORDSinARow snake_case_4u",
    "     leading and trailing     ",
    "\n",
    " ",
)
COMPOSED = "e\u0301 combining A\u0308B"


@pytest.fixture(scope="module")
def model():
    return gguf_models.model("llama")


def made(tmp_path, model, tokenizer=None, **changes):
    gguf_models.write_model(tmp_path / "x.gguf", model, tokenizer, **changes)
    files = tokenizer_files(open_gguf(tmp_path / "x.gguf"))
    return files, Tokenizer.from_str(json.dumps(files.tokenizer))


def test_it_is_the_tokenizer_it_was_written_from(model, tmp_path):
    files, found = made(tmp_path, model, tiny.tokenizer())
    original = tiny.tokenizer()
    for text in (*TEXTS, "<|im_start|>user\nsay blue<|im_end|>"):
        assert found.encode(text).ids == original(text).input_ids, text
        assert found.decode(found.encode(text).ids, skip_special_tokens=False) == original.decode(
            original(text).input_ids
        )
    assert files.template == tiny.CHATML and files.notes == ()
    assert files.config["eos_token"] == "<|im_end|>" and files.config["pad_token"] == "<|pad|>"
    assert files.config["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_fillers_are_no_tokens(tmp_path):
    _, found = made(tmp_path, gguf_models.model("llama", vocab_size=160), tiny.tokenizer())
    assert found.get_vocab_size() == 128


@pytest.mark.parametrize(("begin", "end"), [(True, True), (True, False), (False, True), (False, False)])
def test_begin_and_end(model, tmp_path, begin, end):
    fields = {"tokenizer.ggml.add_bos_token": begin, "tokenizer.ggml.add_eos_token": end}
    _, found = made(tmp_path, model, tiny.tokenizer(), fields=fields)
    ids = found.encode("say").ids
    assert ids == [1] * begin + found.encode("say", add_special_tokens=False).ids + [2] * end
    assert found.encode("say", "say").ids == ids * 2


@pytest.mark.parametrize(("pre", "begin"), [("llama-bpe", True), ("tekken", True), ("qwen2", False), ("smollm", False)])
def test_files_that_do_not_say_so_begin_as_llama_cpp_does(model, tmp_path, pre, begin):
    _, found = made(tmp_path, model, tiny.tokenizer(), pre=pre)
    assert (found.encode("x").ids[0] == 1) is begin


# The blank before a digit belongs to no word: what transformers' conversion loses.
def test_smollm_cuts_digits_off_before_words():
    assert [step["type"] for step in CUTS["smollm"].as_json()["pretokenizers"]] == ["Digits", "ByteLevel"]


@pytest.mark.slow
def test_digits_are_cut_off_first(tmp_path, demo_tokenizer):
    model = gguf_models.model("llama", vocab_size=len(demo_tokenizer), hidden_size=32, num_hidden_layers=1)
    _, found = made(tmp_path, model, demo_tokenizer, pre="smollm")
    assert found.encode("a   3 4").tokens == ["a", "ĠĠĠ", "3", "Ġ", "4"]


def test_no_name_of_the_cut(model, tmp_path):
    files, _ = made(tmp_path, model, tiny.tokenizer(), fields={"tokenizer.ggml.pre": None})
    assert files.notes == ("the GGUF does not say how its tokenizer cuts text; taken for 'gpt-2'",)


def test_ends(model, tmp_path):
    gguf_models.write_model(tmp_path / "x.gguf", model, fields={"tokenizer.ggml.eot_token_id": 9})
    assert end_tokens(open_gguf(tmp_path / "x.gguf")) == [2, 9]


PIECES = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{byte:02X}>" for byte in range(256)),
    "<|end|>",
    "\n\n",
    "▁",
    "a",
    "b",
    "ab",
    "▁ab",
]
KINDS = [2, 3, 3, *[6] * 256, 3, 4, 1, 1, 1, 1, 1]
SCORES = [0.0] * 261 + [-4.0, -5.0, -6.0, -1.0, -2.0]


@pytest.mark.parametrize("prefix", [True, False])
def test_sentence_piece(tmp_path, prefix):
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": PIECES,
        "tokenizer.ggml.token_type": KINDS,
        "tokenizer.ggml.scores": SCORES,
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    _, found = made(tmp_path, gguf_models.model("llama", vocab_size=len(PIECES)), fields=fields)
    blank = ["▁"] if prefix else []
    assert found.encode("b").tokens == ["<s>", *blank, "b"]
    assert found.encode("ab").tokens == ["<s>", "▁ab" if prefix else "ab"]
    assert found.encode("é a").tokens == ["<s>", *blank, "<0xC3>", "<0xA9>", "▁", "a"]
    assert found.encode("a<|end|>\n\nab").tokens[-3 - prefix :][-1] == ("▁ab" if prefix else "ab")
    for text in ("a b  ab é\n", "b"):
        assert found.decode(found.encode(text).ids) == text


def refusal(tmp_path, model, fields):
    with pytest.raises(ModelError) as caught:
        made(tmp_path, model, fields=fields)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "value"),
    [
        ({"tokenizer.ggml.model": "bert"}, "a tokenizer of kind 'bert'"),
        ({"tokenizer.ggml.model": None}, "no tokenizer"),
        ({"tokenizer.ggml.tokens": None}, "no tokens"),
        ({"tokenizer.ggml.pre": "kimi-k2"}, "a tokenizer that cuts text by 'kimi-k2'"),
        ({"tokenizer.ggml.merges": None}, "a byte-level vocabulary without merges"),
        ({"tokenizer.ggml.merges": ["a c"]}, "merge 'a c' of tokens that are not there"),
        ({"tokenizer.ggml.model": "llama"}, "0 scores for 128 tokens"),
        ({"tokenizer.ggml.eos_token_id": 128}, "eos_token_id 128 of 128 tokens"),
    ],
)
def test_what_is_refused(model, tmp_path, fields, value):
    error = refusal(tmp_path, model, fields)
    assert error.value == value and error.subject == str(tmp_path / "x.gguf")


def test_transformers_takes_the_files_as_they_are(tmp_path):
    from transformers import AutoTokenizer

    for family in ("llama", "qwen2", "qwen3", "phi3", "gemma3_text"):
        path = tmp_path / f"{family}.gguf"
        pre = "qwen2" if family.startswith("qwen") else "llama-bpe"
        fields = {"tokenizer.ggml.add_bos_token": True}
        gguf_models.write_model(path, gguf_models.model(family), tiny.tokenizer(), pre=pre, fields=fields)
        folder = gguf.model_folder(path, tmp_path / "cache")
        live, stored = AutoTokenizer.from_pretrained(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
        assert live.chat_template == tiny.CHATML
        for text in (*TEXTS, COMPOSED):
            assert live(text).input_ids == stored.encode(text).ids, (family, text)
            assert live(text, add_special_tokens=False).input_ids == stored.encode(text, add_special_tokens=False).ids


@pytest.mark.slow
@pytest.mark.parametrize(
    "pre", ["gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "qwen35", "tekken", "gpt-4o", "default"]
)
def test_ids_are_llama_cpps(tmp_path, demo_tokenizer, pre):
    judge = judges.package("xllamacpp")
    changes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = gguf_models.model("llama", vocab_size=len(demo_tokenizer), **changes)
    _, found = made(tmp_path, model, demo_tokenizer, pre=pre)
    parameters = judge.CommonParams()
    parameters.model.path = str(tmp_path / "x.gguf")
    parameters.n_ctx, parameters.cpuparams.n_threads, parameters.warmup = 256, 2, False
    server = judge.Server(parameters)
    for text in (*TEXTS, COMPOSED):
        for special in (False, True):
            body = {"content": text, "add_special": special, "parse_special": True}
            request = urllib.request.Request(
                f"{server.listening_address}/tokenize", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request) as answer:
                ids = json.load(answer)["tokens"]
            same = found.encode(text, add_special_tokens=special).ids == ids
            # These tokenizers compose characters first, and llama.cpp does not: the one difference.
            assert same or (text == COMPOSED and CUTS[pre].composed), text
