"""Tokenizers are exported as the base has them; of what training changed, only what it meant to change."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from hasten.export.hf.tokenizer import copied, tokenizer_folder, vocabulary_size, write_tokenizer
from hasten.files import write_json
from support import tiny

OTHER = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}{{ eos_token }}{% endfor %}"


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    tiny.save_model(folder)
    return folder


@pytest.fixture
def target(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def settings(folder):
    return json.loads((folder / "tokenizer_config.json").read_text())


def trained(tmp_path, change=lambda tokenizer: None):
    """An adapter's folder with a tokenizer as training leaves it."""
    made = tiny.tokenizer()
    made(["a b c d e f g h i j k"], truncation=True, max_length=4, padding="max_length")
    made.padding_side = "left"
    change(made)
    made.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a19_what_use_leaves_on_a_tokenizer_is_not_exported(base, tmp_path, target):
    (base / "tokenizer.model").write_bytes(b"\x00 dummy \xff")
    (base / "LICENSE").write_text("as is")
    (base / "something.of.theirs").write_text("unknown")
    adapter = trained(tmp_path)
    left = json.loads((adapter / "tokenizer.json").read_text())
    assert left["truncation"]["max_length"] == 4 and left["padding"]["strategy"] == {"Fixed": 4}  # what 5.1 is about
    assert tokenizer_folder(base, adapter) == base
    assert write_tokenizer(base, adapter, target) == []
    for name in ("tokenizer.json", "tokenizer.model", "LICENSE", "something.of.theirs", "chat_template.jinja"):
        assert (target / name).read_bytes() == (base / name).read_bytes()
    content = json.loads((target / "tokenizer.json").read_text())
    assert content["truncation"] is None and content["padding"] is None
    assert (target / "chat_template.jinja").read_text() == settings(target)["chat_template"] == tiny.CHATML
    assert settings(target)["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings(target).get("padding_side") == settings(base).get("padding_side")
    again = AutoTokenizer.from_pretrained(target)
    assert again.padding_side == AutoTokenizer.from_pretrained(base).padding_side
    assert again("one two <|im_end|>").input_ids == tiny.tokenizer()("one two <|im_end|>").input_ids


def test_a_complete_tokenizer_is_copied_byte_for_byte(base, target):
    write_json(
        base / "tokenizer_config.json",
        {**settings(base), "tokenizer_class": "PreTrainedTokenizerFast"} | {"chat_template": tiny.CHATML},
    )
    write_tokenizer(base, None, target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {
        path.name: path.read_bytes() for path in copied(base)
    }


def test_a_template_that_training_used_is_in_both_places(base, tmp_path, target):
    (base / "chat_template.jinja").unlink()
    adapter = trained(tmp_path, lambda tokenizer: setattr(tokenizer, "chat_template", OTHER))
    assert tokenizer_folder(base, adapter) == adapter
    notes = write_tokenizer(base, adapter, target)
    assert notes == ["the chat template is the one that the adapter was trained with"]
    assert (target / "chat_template.jinja").read_text() == settings(target)["chat_template"] == OTHER
    assert (target / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_markers_of_generation_are_left_out(base, tmp_path, target):
    marked = OTHER.replace("{{ message['content'] }}", "{% generation %}{{ message['content'] }}{% endgeneration %}")
    adapter = trained(tmp_path, lambda tokenizer: setattr(tokenizer, "chat_template", marked))
    write_tokenizer(base, adapter, target)
    assert "generation" not in (target / "chat_template.jinja").read_text() + settings(target)["chat_template"]
    talk = [{"role": "user", "content": "hi"}]
    assert AutoTokenizer.from_pretrained(target).apply_chat_template(talk, tokenize=False) == "[user] hi<|im_end|>"


def test_a_base_with_several_templates_keeps_them(base, tmp_path, target):
    (base / "chat_template.jinja").unlink()
    several = [{"name": "default", "template": tiny.CHATML}, {"name": "tool_use", "template": OTHER}]
    write_json(base / "tokenizer_config.json", {**settings(base), "chat_template": several})
    assert write_tokenizer(base, trained(tmp_path), target) == []
    assert settings(target)["chat_template"] == several and not (target / "chat_template.jinja").exists()


def test_a_vocabulary_that_grew(base, tmp_path, target):
    (base / "vocab.json").write_text("{}")
    (base / "special_tokens_map.json").write_text("{}")
    adapter = trained(tmp_path, lambda tokenizer: tokenizer.add_tokens(["<tool>", "<page>"]))
    assert tokenizer_folder(base, adapter) == adapter
    notes = write_tokenizer(base, adapter, target)
    assert notes == ["the tokenizer's vocabulary is the one that the adapter was trained with"]
    again = AutoTokenizer.from_pretrained(target)
    assert again("<tool><page>").input_ids == [128, 129] and len(again) == vocabulary_size(target) == 130
    content = json.loads((target / "tokenizer.json").read_text())
    assert content["truncation"] is None and content["padding"] is None
    assert not (target / "vocab.json").exists() and not (target / "special_tokens_map.json").exists()
    assert settings(target).get("padding_side") == settings(base).get("padding_side")
    assert settings(target)["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_another_end_token(base, tmp_path, target):
    (base / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}')
    adapter = trained(tmp_path, lambda tokenizer: setattr(tokenizer, "eos_token", "<|pad|>"))
    assert write_tokenizer(base, adapter, target) == ["eos_token of the tokenizer: as the adapter was trained with"]
    assert AutoTokenizer.from_pretrained(target).eos_token == settings(target)["eos_token"] == "<|pad|>"
    assert json.loads((target / "special_tokens_map.json").read_text())["eos_token"] == "<|pad|>"


def test_a_padding_token_that_loading_gave_is_none_of_the_model(base, tmp_path, target):
    before = settings(base)
    del before["pad_token"]
    write_json(base / "tokenizer_config.json", before)
    write_tokenizer(base, trained(tmp_path), target)
    assert "pad_token" not in settings(target)


def test_files_that_stay_behind(base):
    others = ("pytorch_model.bin", "model.safetensors.index.json", "modeling.py", "adapter_config.json", ".hidden")
    for name in (*others, "converted.json"):
        (base / name).write_text("{}")
    names = {path.name for path in copied(base)}
    assert names == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


@pytest.mark.parametrize("old", [True, False])
def test_how_a_vocabulary_is_spelled_does_not_matter(base, tmp_path, old, target):
    content = json.loads((base / "tokenizer.json").read_text())
    if old:
        content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    content["model"] |= {"ignore_merges": False}
    (base / "tokenizer.json").write_text(json.dumps(content))
    assert write_tokenizer(base, trained(tmp_path), target) == []
    assert (target / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_a_folder_without_a_tokenizer(tmp_path, target):
    tiny.llama().save_pretrained(tmp_path / "bare")
    assert write_tokenizer(tmp_path / "bare", None, target) == [] and list(target.iterdir()) == []
    assert vocabulary_size(target) is None
    adapter = trained(tmp_path)
    assert tokenizer_folder(tmp_path / "bare", adapter) == adapter
    shutil.rmtree(adapter)
    assert tokenizer_folder(tmp_path / "bare", adapter) == tmp_path / "bare"
