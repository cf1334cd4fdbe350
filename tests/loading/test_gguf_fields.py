"""Metadata that are not what they should be: every field of every family in turn, by values of every other type."""

import itertools
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from hasten.errors import HastenError, ModelError
from hasten.loading import gguf, gguf_fields, gguf_tensors
from hasten.loading.gguf_config import configuration
from hasten.loading.gguf_file import GgufFile, _require_all, _require_model, open_gguf
from hasten.loading.gguf_names import form_of
from hasten.loading.gguf_tokenizer import end_tokens, tokenizer_files
from support import gguf_experts, gguf_models, tiny

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "phi3": {"original_max_position_embeddings": 64, "sliding_window": 9},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "mixtral": {},
    "qwen2_moe": {},
    "qwen3_moe": {},
}
ABSENT = object()
MANY = [
    ABSENT, "", "x", "7", b"\xff".decode("latin-1"), [], [1], ["x"], [float("nan")], [[1]], True, False, 0, 1, -1, 3,
    2**16 + 1, 2**31, 2**62, 2**64 - 1, 0.0, 0.5, -1.5, 1e30, float("nan"), float("inf"), -float("inf"),
]  # fmt: skip
FEW = [ABSENT, "x", [1], 0, -1, 2**62, float("nan")]
SAID_OTHERWISE = {  # fields that tiny files lack
    "rope.scaling.factor": 2.0,
    "rope.scaling.type": "yarn",
    "rope.scaling.original_context_length": 32,
    "rope.scaling.yarn_beta_fast": 32.0,
    "rope.scaling.attn_factor": 1.0,
    "rope.dimension_count": 8,
    "attention.key_length": 8,
    "attention.value_length": 8,
}
GENERAL = {
    "general.sampling.temp": 0.5,
    "general.type": "model",
    "split.count": 1,
    "split.tensors.count": 0,
    "tokenizer.chat_template": tiny.CHATML,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.add_eos_token": False,
    "tokenizer.ggml.add_space_prefix": True,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eot_token_id": 2,
    "tokenizer.ggml.scores": [float(-number) for number in range(128)],
}


def converted(file: GgufFile, planned: set[str]) -> None:
    """Everything that is made of metadata, as `hasten.loading.gguf` makes it.

    Args:
        file: the model.
        planned: configurations whose models were compared with the tensors already.
    """
    _require_all(file.parts, file.fields, len(file.tensors))
    _require_model(file.path, file.fields)
    form = form_of(file)
    if form is None:  # transformers' own conversion, which reads the file itself
        return
    config = configuration(file, form)
    made = tokenizer_files(file)
    json.dumps([made.tokenizer, made.config, made.template])
    end_tokens(file)
    for name in gguf._SAMPLING:
        gguf._sampling(file, name)
    said = str(config)
    if said not in planned:
        planned.add(said)
        gguf_tensors.plan(file, form, config)


@pytest.mark.parametrize(
    ("family", "others"),
    [(family, FEW) for family in FAMILIES]
    + [pytest.param(family, MANY, marks=pytest.mark.slow, id=f"{family}-many") for family in FAMILIES],
)
def test_every_field_by_every_other_value(family, others, tmp_path):
    """Either it does not matter, or it is one sentence about it."""
    experts = family in gguf_experts.FAMILIES
    module, changes = (gguf_experts, gguf_experts.FAMILIES[family]) if experts else (gguf_models, FAMILIES[family])
    module.write_model(tmp_path / "x.gguf", gguf_models.model(family, **{**SMALL, **changes}), tiny.tokenizer())
    file = open_gguf(tmp_path / "x.gguf")
    fields, planned = {**file.fields, **GENERAL}, set()
    if family == "gemma3_text":  # as its own files say it
        fields["tokenizer.ggml.model"] = "llama"
    more = {f"{file.arch}.{name}": value for name, value in SAID_OTHERWISE.items()}
    converted(replace(file, fields=fields), planned)
    refused = 0
    for name, value in itertools.product({**fields, **more}, others):
        changed = {**fields, **(more if "rope.scaling" in name else {}), name: value}
        if value is ABSENT:
            del changed[name]
        try:
            converted(replace(file, fields=changed), planned)
        except HastenError as error:
            refused += 1
            assert error.subject and error.value and error.rule and error.remedy and len(error.value) < 400
    assert refused > 100


@pytest.mark.parametrize(
    ("read", "good", "bad", "rule"),
    [
        (
            gguf_fields.whole,
            [0, 7, 7.0],
            [-1, 2**20 + 1, 0.5, True, "7", None, [7], float("nan")],
            "whole number from 0",
        ),
        (gguf_fields.number, [0, -1.5, 1e30], [True, "1", float("nan"), float("inf"), [1.0]], "finite number"),
        (gguf_fields.flag, [True, False, 0, 1], [2, 1.0, "true", None, []], "true or false"),
        (gguf_fields.text, ["", "x"], [1, None, ["x"]], "a text"),
        (gguf_fields.texts, [[], ["x"]], [1, "x", [1], ["x", None]], "list of texts"),
        (gguf_fields.numbers, [[], [1, -float("inf")]], [1, ["x"], [True], [float("nan")]], "list of numbers"),
    ],
)
def test_what_a_field_must_be(read, good, bad, rule):
    for value in good:
        assert read(Path("x.gguf"), "a.b", value) == value
    for value in bad:
        with pytest.raises(ModelError) as caught:
            read(Path("x.gguf"), "a.b", value)
        assert caught.value.subject == "x.gguf" and caught.value.value == f"a.b = {value!r}"
        assert rule in caught.value.rule and caught.value.remedy.startswith("Convert it again")


def test_bounds_and_zero():
    assert gguf_fields.whole(Path("x"), "a", 2**31, most=gguf_fields.POSITIONS) == 2**31
    for read in (partial(gguf_fields.whole, least=1), partial(gguf_fields.number, positive=True)):
        with pytest.raises(ModelError, match="from 1 to|positive"):
            read(Path("x"), "a", 0)
