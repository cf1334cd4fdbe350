"""The Modelfile of an exported model: its template, all its stops, and what happens where there is no template."""

import copy

import pytest
from transformers import GenerationConfig

from hasten.data.named_templates import named_template
from hasten.data.templates import ChatEncoder
from hasten.errors import CapabilityError, ConfigError, ModelError
from hasten.export.ollama.go_template import GoTemplate
from hasten.export.ollama.modelfile import parse
from hasten.export.ollama.prompt import ollama_prompt
from hasten.export.ollama.write import check_modelfile, stops, write_modelfile
from support import tiny

SYSTEM, USER, ANSWER, AGAIN = (
    {"role": role, "content": text}
    for role, text in (("system", "S"), ("user", "U1"), ("assistant", "A1"), ("user", "U2"))
)
PROBES = ([USER], [SYSTEM, USER], [USER, ANSWER, AGAIN])


def with_template(tokenizer, template, eos=None):
    made = copy.deepcopy(tokenizer)
    made.chat_template = template
    if eos is not None:
        made.eos_token = made.convert_ids_to_tokens(eos)
    return ChatEncoder(made)


@pytest.fixture
def gguf(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    return tmp_path


def rendered_by_both(encoder, path):
    template = GoTemplate(parse(path.read_text(encoding="utf-8")).template)
    for messages in PROBES:
        yield ollama_prompt(template, messages), encoder.renderer.render(messages, ask=True)


def test_a21_stop_tokens_everywhere(demo_tokenizer, gguf):
    encoder = with_template(demo_tokenizer, tiny.CHATML, eos=0)
    made = write_modelfile(gguf, "m.gguf", encoder, generation_config=GenerationConfig(eos_token_id=2))
    written = parse(made.path.read_text(encoding="utf-8"))
    assert written.parameters["stop"] == ["<|endoftext|>", "<|im_end|>"] == list(made.stops)
    for ours, theirs in rendered_by_both(encoder, made.path):
        assert ours == theirs
    assert check_modelfile(made.path, encoder) == made.proven > 0


def test_3_6_the_embedded_model_has_its_stop_and_its_template(demo_tokenizer, gguf):
    encoder = ChatEncoder(demo_tokenizer)
    made = write_modelfile(gguf, "m.gguf", encoder)
    text = made.path.read_text(encoding="utf-8")
    assert text.count("PARAMETER stop ") == 1
    assert 'PARAMETER stop "<|im_end|>"\n' in text
    for ours, theirs in rendered_by_both(encoder, made.path):
        assert ours == theirs
    assert parse(text).system == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def test_7_7_a_template_that_cannot_be_translated(demo_tokenizer, gguf):
    shouting = tiny.CHATML.replace("message['content']", "message['content'] | upper")
    made = write_modelfile(gguf, "m.gguf", with_template(demo_tokenizer, shouting))
    text = made.path.read_text(encoding="utf-8")
    assert made.proven == 0
    assert "the chat template" in made.refused
    assert parse(text).template is None
    assert 'TEMPLATE "' not in text
    assert '"raw": true' in text
    assert parse(text).parameters["stop"] == ["<|im_end|>"]
    assert check_modelfile(made.path, with_template(demo_tokenizer, shouting)) == 0


def test_a_model_without_a_chat_template(demo_tokenizer, gguf):
    made = write_modelfile(gguf, "m.gguf", with_template(demo_tokenizer, None))
    assert "no chat template" in made.refused
    assert parse(made.path.read_text(encoding="utf-8")).template is None


def test_notes_are_in_the_file(demo_tokenizer, gguf):
    template = named_template("llama-3")[0].replace("<|eot_id|>", "<|im_end|>")
    made = write_modelfile(gguf, "m.gguf", with_template(demo_tokenizer, template))
    (note,) = made.notes
    assert made.path.read_text(encoding="utf-8").startswith(f"# {note}\n")


def test_what_is_asked_for_is_written(demo_tokenizer, gguf):
    encoder = ChatEncoder(demo_tokenizer)
    held = {"do_sample": True, "temperature": 0.2, "eos_token_id": [2, 0]}
    made = write_modelfile(gguf, "m.gguf", encoder, generation_config=held, system="Be brief.", num_ctx=2048)
    written = parse(made.path.read_text(encoding="utf-8"))
    assert written.source == "./m.gguf"
    assert written.system == "Be brief."
    numbers = {"temperature": "0.2", "top_k": "50", "top_p": "1", "num_ctx": "2048"}
    assert written.parameters == {**numbers, "stop": ["<|endoftext|>", "<|im_end|>"]}


def test_a_system_text_that_no_modelfile_can_have(demo_tokenizer, gguf):
    with pytest.raises(ConfigError, match="SYSTEM"):
        write_modelfile(gguf, "m.gguf", ChatEncoder(demo_tokenizer), system="a\u00a0b")
    assert not (gguf / "Modelfile").exists()
    # The template's own needs no SYSTEM line: the template writes it.
    own = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\na\u00a0b<|im_end|>\n{% endif %}" + tiny.CHATML
    encoder = with_template(demo_tokenizer, own)
    made = write_modelfile(gguf, "m.gguf", encoder)
    assert parse(made.path.read_text(encoding="utf-8")).system is None
    for ours, theirs in rendered_by_both(encoder, made.path):
        assert ours == theirs


def test_a_changed_file_is_found(demo_tokenizer, gguf):
    encoder = ChatEncoder(demo_tokenizer)
    path = write_modelfile(gguf, "m.gguf", encoder).path
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("<|im_start|>user\n", "<|im_start|>user"), encoding="utf-8")
    with pytest.raises(CapabilityError, match="would become"):
        check_modelfile(path, encoder)
    path.write_text(text.replace('PARAMETER stop "<|im_end|>"\n', ""), encoding="utf-8")
    with pytest.raises(ModelError, match=r"no stop '<\|im_end\|>'"):
        check_modelfile(path, encoder)
    path.write_text(text, encoding="utf-8")
    (gguf / "m.gguf").unlink()
    with pytest.raises(ModelError, match=r"no file './m\.gguf'"):
        check_modelfile(path, encoder)


def test_stops_are_texts_of_tokens(demo_tokenizer):
    encoder = ChatEncoder(demo_tokenizer)
    assert stops(encoder) == ["<|im_end|>"]
    assert stops(encoder, {"eos_token_id": 0}) == ["<|endoftext|>", "<|im_end|>"]
    assert stops(encoder, GenerationConfig(eos_token_id=[0, 2])) == ["<|endoftext|>", "<|im_end|>"]
    with pytest.raises(ModelError) as caught:
        stops(encoder, {"eos_token_id": 10**6})
    assert caught.value.value == "1000000"
    assert "generation_config.json" in caught.value.remedy
