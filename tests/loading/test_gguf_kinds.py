"""Metadata of every wrong kind, and files with bytes missing or changed, end in a sentence, never in a stack trace."""

import math
import random
from dataclasses import replace

import pytest

from hasten.errors import HastenError, ModelError
from hasten.loading import gguf_tensors
from hasten.loading.gguf_config import configuration
from hasten.loading.gguf_file import open_gguf
from hasten.loading.gguf_kinds import require_general, require_of_architecture
from hasten.loading.gguf_names import form_of
from hasten.loading.gguf_tokenizer import end_tokens, tokenizer_files
from support import gguf_experts, gguf_models

FAMILIES = ("llama", "qwen2", "qwen3", "phi3", "gemma3_text", *gguf_experts.FAMILIES)
OTHERS = (
    None, "", "text", -1, 0, 1, 3, 2**20, 2**31, 2**63, -0.5, 0.0, 2.5, 1e38, math.nan, math.inf, True, False,
    [], [1, 2], [-1], ["a", "b"], [0.5, math.nan], [True], [[1], ["a"]],
)  # fmt: skip
MORE = {  # that the tiny files do not say
    "general.type": "model", "general.sampling.temp": 0.5, "general.sampling.top_k": 20, "split.count": 1,
    "split.tensors.count": 0, "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_space_prefix": True,
    "tokenizer.ggml.eot_token_id": 3, "tokenizer.ggml.unknown_token_id": 4, "tokenizer.chat_template": "{{ x }}",
}  # fmt: skip
MORE_OF_ARCHITECTURE = {
    "vocab_size": 128, "attention.key_length": 64, "attention.value_length": 64, "attention.causal": True,
    "rope.dimension_count": 64, "rope.scale_linear": 2.0, "rope.scaling.type": "yarn", "rope.scaling.factor": 2.0,
    "rope.scaling.original_context_length": 32, "rope.scaling.yarn_beta_fast": 32.0, "rope.freq_base_swa": 1e4,
    "rope.scaling.attn_factor": 1.0, "expert_gating_func": 1, "leading_dense_block_count": 0,
}  # fmt: skip


def written(path, family, **changes):
    maker = gguf_experts if family in gguf_experts.FAMILIES else gguf_models
    maker.write_model(path, maker.model(family, num_hidden_layers=1, **changes), kind="F16")
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return written(tmp_path_factory.mktemp("gguf") / "x.gguf", "llama")


def read(file):
    """All that a conversion makes of metadata."""
    require_general(file.path, file.fields)
    form = form_of(file)
    if form is None:
        return None
    found = configuration(file, form)
    tokenizer_files(file)
    end_tokens(file)
    return found, form


def outcome(file):
    try:
        return read(file)
    except HastenError as error:
        assert all(part.strip() for part in (error.subject, error.value, error.rule, error.remedy))
        assert len(str(error)) < 1000
        return None


def changed(file, name, value):
    fields = {key: each for key, each in file.fields.items() if key != name}
    return replace(file, fields=fields if value is None else {**fields, name: value})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_by_every_other_kind(tmp_path, family):
    plain = open_gguf(written(tmp_path / "x.gguf", family))
    own = {f"{plain.arch}.{name}": value for name, value in MORE_OF_ARCHITECTURE.items()}
    accepted = 0
    for name in (*plain.fields, *(MORE.keys() | own.keys()) - plain.fields.keys()):
        base = plain
        if ".rope.scal" in name:  # scaling is read as a whole
            base = replace(base, fields={**base.fields, **{key: own[key] for key in own if ".rope.scal" in key}})
        for value in OTHERS:
            found = outcome(changed(base, name, value))
            if found is not None:
                accepted += 1
                shapes = [repr(each) for each in (found[0].hidden_size, found[0].num_hidden_layers)]
                assert shapes == ["256", "1"], (name, value)
    assert accepted


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_what_is_accepted_makes_a_model_or_a_sentence(tmp_path, family):
    plain = open_gguf(written(tmp_path / "x.gguf", family))
    for name, value in [
        ("feed_forward_length", 2**20),
        ("attention.head_count", 2**7),
        ("attention.head_count_kv", 1),
        ("attention.key_length", 2**20),
        ("context_length", 2**31 - 1),
        ("expert_count", 4096),
        ("expert_feed_forward_length", 2**20),
    ]:
        if name.startswith("expert" if family == "llama" else "feed"):  # not this family's
            continue
        file = changed(plain, f"{plain.arch}.{name}", value)
        if name == "attention.key_length":
            file = changed(file, f"{plain.arch}.attention.value_length", value)
        found = outcome(file)
        if found is None:
            continue
        config, form = found
        if name == "context_length":
            assert gguf_tensors.plan(file, form, config)
            continue
        with pytest.raises(ModelError, match="differ from what its metadata says"):
            gguf_tensors.plan(file, form, config)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("llama.block_count", "two", "llama.block_count = 'two'. It is a whole number from 1 to 1,048,576."),
        ("llama.block_count", 2000, "llama.block_count = 2000, but its tensors say 1. A model is loaded"),
        ("llama.embedding_length", 2**20, "llama.embedding_length = 1048576, but its tensors say 256."),
        ("llama.attention.head_count", -4, "llama.attention.head_count = -4. It is a whole number from 1"),
        ("llama.attention.head_count", 0, "llama.attention.head_count = 0. It is a whole number from 1"),
        (
            "llama.attention.head_count_kv",
            3,
            "llama.attention.head_count_kv = 3. 4 heads of queries share them evenly.",
        ),
        ("llama.rope.freq_base", math.inf, "llama.rope.freq_base = inf. It is a number above 0."),
        ("llama.attention.layer_norm_rms_epsilon", "1e-5", "= '1e-5'. It is a number of at least 0."),
        ("tokenizer.ggml.add_bos_token", "false", "tokenizer.ggml.add_bos_token = 'false'. It is true or false."),
        ("tokenizer.ggml.tokens", ["a", 7], "tokenizer.ggml.tokens = a list whose value 1 is 7. It is a list of texts"),
        ("tokenizer.ggml.tokens", "abc", "tokenizer.ggml.tokens = 'abc'. It is a list of texts."),
        ("tokenizer.ggml.token_type", [1], "1 kinds for 128 tokens. They say which tokens are control tokens."),
        ("tokenizer.ggml.bos_token_id", 500, "bos_token_id 500 of 128 tokens. Special tokens are tokens of"),
        ("tokenizer.ggml.eot_token_id", 500, "eot_token_id 500 of 128 tokens. Special tokens are tokens of"),
        ("tokenizer.chat_template", ["x"], "tokenizer.chat_template = ['x']. It is a text."),
        ("general.type", [1], "general.type = [1]. It is a text."),
        ("split.count", "two", "split.count = 'two'. It is a whole number"),
    ],
)
def test_the_sentence(path, name, value, said):
    with pytest.raises(ModelError) as caught:
        read(changed(open_gguf(path), name, value))
    assert said in str(caught.value) and caught.value.subject == str(path)
    assert "again" in caught.value.remedy or "Hugging Face folder" in caught.value.remedy


def test_heads_that_do_not_divide_the_width(path):
    file = open_gguf(path)
    for name, value in {"head_count": 3, "head_count_kv": 1, "key_length": 64, "value_length": 64}.items():
        file = changed(file, f"llama.attention.{name}", value)
    # By the check of the configuration itself, where the installed transformers has it.
    with pytest.raises(ModelError, match="that transformers refuses .*not a multiple|differ from what its metadata"):
        gguf_tensors.plan(file, form_of(file), configuration(file, form_of(file)))
    for heads in (256, 128 + 64):
        with pytest.raises(ModelError, match="Heads have an even number of values, and these have 1"):
            read(
                changed(
                    changed(open_gguf(path), "llama.attention.head_count", heads), "llama.attention.head_count_kv", 1
                )
            )


def test_an_embedding_that_is_no_matrix(path):
    file = open_gguf(path)
    vector = file.tensors["output_norm.weight"]
    with pytest.raises(ModelError, match=r"'token_embd.weight' of shape \(256,\). It is a matrix with a row"):
        configuration(replace(file, tensors={**file.tensors, "token_embd.weight": vector}), form_of(file))


def test_a_kind_is_checked_only_of_the_own_architecture(path):
    fields = open_gguf(path).fields
    require_of_architecture(path, {**fields, "other.block_count": "x"}, "llama")
    require_of_architecture(path, {"llama.rope.freq_base": 10000}, "llama")  # a whole number is a number


def test_bytes_that_were_changed_or_cut_off(path, tmp_path):
    content, chance = path.read_bytes(), random.Random(0)
    start = len(content) - 256 * 1024  # most of it is weights, and any of them are values
    head = content.index(b"blk.0.ffn_down.weight")
    damaged = tmp_path / "x.gguf"
    for _ in range(150):
        bytes_now = bytearray(content)
        for _ in range(chance.choice((1, 1, 8))):
            bytes_now[chance.randrange(8, head)] = chance.choice((0, 1, 9, 127, 128, 255))
        damaged.write_bytes(bytes_now if chance.random() < 0.7 else bytes_now[: chance.randrange(8, start)])
        try:
            file = open_gguf(damaged)
        except ModelError:
            continue
        outcome(file)


def test_lists_in_lists_without_end(path, tmp_path):
    content = path.read_bytes()
    name = b"tokenizer.ggml.merges"
    place = content.index(name) + len(name)
    nest = (9).to_bytes(4, "little") + (1).to_bytes(8, "little")
    (tmp_path / "x.gguf").write_bytes(content[: place + 4] + nest * 5000)
    with pytest.raises(ModelError, match="a damaged GGUF"):
        open_gguf(tmp_path / "x.gguf")
