"""Facts of a file; that they are those of llama.cpp's converter is in test_write.py."""

import json

import pytest
from gguf import GGUFValueType, LlamaFileType
from tokenizers import processors
from transformers import AutoTokenizer

from hasten.errors import ConfigError, ModelError
from hasten.export.gguf.encoders import Type
from hasten.export.gguf.metadata import DIFFERENCES, file_type, metadata
from hasten.export.gguf.source import Source
from hasten.export.weights import PlainFolder
from support import tiny
from support.gguf_judges import family_folder


def facts_of(folder, **facts):
    return {key: field.value for key, field in metadata(Source(PlainFolder(folder)), facts or None).kv_data[0].items()}


def settings(folder, file, **changes):
    before = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps({**before, **changes}))


def test_sizes_and_tokens(tiny_model_folder):
    said = facts_of(tiny_model_folder)
    assert (said["llama.block_count"], said["llama.context_length"], said["llama.vocab_size"]) == (2, 64, 128)
    assert (said["llama.attention.head_count"], said["llama.attention.head_count_kv"]) == (4, 2)
    assert said["llama.rope.dimension_count"] == 16 and said["general.quantization_version"] == 2
    assert (said["tokenizer.ggml.bos_token_id"], said["tokenizer.ggml.eos_token_id"]) == (1, 2)
    assert said["tokenizer.ggml.add_bos_token"] is False and "tokenizer.ggml.add_eos_token" not in said
    assert said["tokenizer.chat_template"] == tiny.CHATML


def test_a_begin_token_that_the_tokenizer_adds(tiny_model_folder):
    tiny.with_bos(tiny.tokenizer()).save_pretrained(tiny_model_folder)
    assert facts_of(tiny_model_folder)["tokenizer.ggml.add_bos_token"] is True


@pytest.mark.parametrize("parts", [(), ("bos",), ("eos",), ("bos", "eos")])
@pytest.mark.parametrize("flags", [{}, {"add_bos_token": True, "add_eos_token": True},
                                   {"add_bos_token": False, "add_eos_token": False}])  # fmt: skip
def test_what_is_put_around_a_text_is_what_transformers_puts_there(parts, flags, tiny_model_folder):
    made = tiny.tokenizer()
    ends = {name: f"{getattr(made, f'{name}_token')} " for name in parts}
    made.backend_tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(),
            processors.TemplateProcessing(
                single=f"{ends.get('bos', '')}$A {ends.get('eos', '')}".strip(),
                special_tokens=[(made.bos_token, tiny.BOS), (made.eos_token, tiny.EOS)],
            ),
        ]
    )
    made.save_pretrained(tiny_model_folder)
    settings(tiny_model_folder, "tokenizer_config.json", **flags)
    ids = AutoTokenizer.from_pretrained(str(tiny_model_folder))("red")["input_ids"]
    said = facts_of(tiny_model_folder)
    assert said["tokenizer.ggml.add_bos_token"] is (ids[0] == tiny.BOS) is ("bos" in parts)
    assert said.get("tokenizer.ggml.add_eos_token", False) is (ids[-1] == tiny.EOS) is ("eos" in parts)
    assert {"tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"} <= set(DIFFERENCES)


def test_switches_without_anything_that_obeys_them(tiny_model_folder):
    settings(tiny_model_folder, "tokenizer_config.json", add_bos_token=True, add_eos_token=True)
    ids = AutoTokenizer.from_pretrained(str(tiny_model_folder))("red")["input_ids"]
    said = facts_of(tiny_model_folder)
    assert ids[0] != tiny.BOS and said["tokenizer.ggml.add_bos_token"] is False
    assert ids[-1] != tiny.EOS and said["tokenizer.ggml.add_eos_token"] is False


def test_ends_that_llama_cpp_does_not_know(tiny_model_folder):
    settings(tiny_model_folder, "generation_config.json", eos_token_id=[2, 0])
    assert facts_of(tiny_model_folder)["tokenizer.ggml.eot_token_id"] == 0
    settings(tiny_model_folder, "generation_config.json", eos_token_id=2)
    assert "tokenizer.ggml.eot_token_id" not in facts_of(tiny_model_folder)
    # A base model whose text ends in one token and whose turns end in one that is known by its text.
    settings(tiny_model_folder, "generation_config.json", eos_token_id=[0, 2])
    settings(tiny_model_folder, "tokenizer_config.json", eos_token="<|pad|>")
    said = facts_of(tiny_model_folder)
    assert said["tokenizer.ggml.eos_token_id"] == 0 and "tokenizer.ggml.eot_token_id" not in said


def test_own_facts(tiny_model_folder):
    (tiny_model_folder / "README.md").write_text("---\nlicense: mit\ntags:\n- one\n---\nText\n")
    own = {"general.name": "My model", "general.license": None, "x.number": 3, "x.share": 0.5, "x.list": ["a"]}
    draft = metadata(Source(PlainFolder(tiny_model_folder)), {**own, "x.yes": True}).kv_data[0]
    assert draft["general.name"].value == "My model" and "general.license" not in draft
    assert draft["general.tags"].value == ["one"]
    assert [draft[f"x.{key}"].type for key in ("number", "share", "list", "yes")] == [
        GGUFValueType.UINT32, GGUFValueType.FLOAT32, GGUFValueType.ARRAY, GGUFValueType.BOOL
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"facts\['x.odd'\]: -1. A fact is a text"):
        facts_of(tiny_model_folder, **{"x.odd": -1})


def test_a_name_that_llama_cpp_reads_more_into(tiny_model_folder):
    assert facts_of(tiny_model_folder, **{"general.name": "my-Phi-3-like"})["general.name"] == "my-Phi 3-like"
    file = tiny_model_folder / "tokenizer.json"
    assert "general.name" in DIFFERENCES and file.is_file()


def test_a_card_that_cannot_be_read(tiny_model_folder):
    (tiny_model_folder / "README.md").write_text("---\na: [1\n---\n")
    with pytest.raises(ModelError, match=r"README.md: its first lines are no YAML.*Correct or remove it"):
        facts_of(tiny_model_folder)


def test_a_window_that_llama_cpp_does_not_have_ends_the_context(tmp_path):
    folder = family_folder(tmp_path, "mistral")
    assert facts_of(folder)["llama.context_length"] == 11 and "llama.context_length" in DIFFERENCES
    settings(folder, "config.json", sliding_window=None)
    assert facts_of(folder)["llama.context_length"] == 96


def test_file_types():
    assert file_type("f32", {}) == LlamaFileType.ALL_F32
    assert file_type("q4_k", {}) == LlamaFileType.MOSTLY_Q4_K_M
    assert file_type("iq4_xs", {}) == LlamaFileType.MOSTLY_IQ4_XS
    assert file_type("dynamic", {Type.Q4_K: 5, Type.Q6_K: 3}) == LlamaFileType.MOSTLY_Q4_K_M
    assert file_type("dynamic", {Type.Q6_K: 5, Type.F32: 3}) == LlamaFileType.MOSTLY_Q6_K
    assert file_type("dynamic", {Type.F32: 3}) == LlamaFileType.ALL_F32
