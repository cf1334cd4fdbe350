import copy

import pytest
from jinja2 import TemplateSyntaxError

from hasten.compat.chat_templates import CHAT_TEMPLATES, get_chat_template
from hasten.data.named_templates import EOS, STOPS, named_template
from hasten.errors import ConfigError
from support import tiny
from support.template_texts import CALL, EXPECTED, SYSTEM, TURNS

ALL_TURNS = [SYSTEM, *TURNS]


@pytest.fixture
def tokenizer():
    return tiny.tokenizer()


@pytest.mark.parametrize("name", STOPS)
def test_a_named_template_ends_turns_in_a_token_of_the_model(tokenizer, name):
    stop = named_template(name)[1]
    made = get_chat_template(tokenizer, name)
    assert made is tokenizer
    expected = EXPECTED[name].full
    if stop != EOS:  # no token of this model: its own end stands for it
        expected = expected.removesuffix("<E>").replace(stop, "<|im_end|>")
    expected = expected.replace("<B>", "<|im_start|>").replace("<E>", "<|im_end|>")
    assert made.apply_chat_template(ALL_TURNS, tokenize=False) == expected
    assert made.eos_token == "<|im_end|>"


def test_all_names_are_listed():
    assert {name for name in CHAT_TEMPLATES if named_template(name) == CHAT_TEMPLATES[name]} == set(CHAT_TEMPLATES)
    assert len(CHAT_TEMPLATES) == len(list(CHAT_TEMPLATES)) > len(STOPS)  # other spellings of the same
    assert CHAT_TEMPLATES["gemma-3"] == CHAT_TEMPLATES["gemma"]
    with pytest.raises(KeyError):
        CHAT_TEMPLATES["chatlm"]


def test_the_mask_of_transformers_sees_the_answers(tokenizer):
    made = get_chat_template(tokenizer, "chatml")
    options = {"return_dict": True, "return_assistant_tokens_mask": True}
    encoded = made.apply_chat_template(ALL_TURNS, **options)
    pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    assert made.decode([token for token, learnt in pairs if learnt]) == "A1<|im_end|>A2<|im_end|>"


def test_equal_to_the_models_own(demo_tokenizer):
    ours = get_chat_template(copy.deepcopy(demo_tokenizer), "chatml")
    for ask in (False, True):
        options = {"tokenize": False, "add_generation_prompt": ask}
        assert ours.apply_chat_template(ALL_TURNS, **options) == demo_tokenizer.apply_chat_template(
            ALL_TURNS, **options
        )


def test_sharegpt_mapping(tokenizer):
    mapping = {"role": "from", "content": "value", "user": "human", "assistant": "gpt"}
    made = get_chat_template(tokenizer, "chatml", mapping=mapping, map_eos_token=True)
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    expected = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
    assert made.apply_chat_template(turns, tokenize=False) == expected
    standard = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert made.apply_chat_template(standard, tokenize=False) == expected


def test_renamed_turns_keep_their_calls(tokenizer):
    mapping = {"role": "from", "content": "value", "user": "human", "assistant": "gpt"}
    made = get_chat_template(tokenizer, "chatml", mapping=mapping)
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "", "tool_calls": [CALL]}]
    assert '{"name": "weather", "arguments": {"city": "Oslo"}}' in made.apply_chat_template(turns, tokenize=False)


def test_system_message(tokenizer):
    text = 'It\'s "quoted" \\ and\nünlike'
    made = get_chat_template(tokenizer, "chatml", system_message=text)
    rendered = made.apply_chat_template(TURNS[:2], tokenize=False)
    assert rendered.startswith(f"<|im_start|>system\n{text}<|im_end|>\n<|im_start|>user")
    assert made.apply_chat_template(ALL_TURNS, tokenize=False) == EXPECTED["chatml"].full


def test_end_of_turn_becomes_the_end_token(tokenizer):
    tokenizer.eos_token = "<|pad|>"
    assert get_chat_template(tokenizer, "chatml").eos_token == "<|im_end|>"


def test_without_mapping_the_end(tokenizer, capsys):
    tokenizer.eos_token = "<|pad|>"
    assert get_chat_template(tokenizer, "chatml", map_eos_token=False).eos_token == "<|pad|>"
    made = get_chat_template(tokenizer, "gemma", map_eos_token=False)
    assert "<end_of_turn>" in made.apply_chat_template(TURNS, tokenize=False)
    assert "spelled in pieces" in capsys.readouterr().err


def test_a_template_of_ones_own(tokenizer):
    text = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '<|im_end|>' }}{% endfor %}"
    made = get_chat_template(tokenizer, (text, "<|im_end|>"))
    assert made.apply_chat_template(TURNS[:2], tokenize=False) == "user:U1<|im_end|>assistant:A1<|im_end|>"
    assert get_chat_template(tokenizer, text).chat_template == text
    with pytest.raises(ConfigError, match=r"'<\|im_ent\|>'.*Did you mean '<\|im_end\|>'"):
        get_chat_template(tokenizer, (text, "<|im_ent|>"))


def test_unknown_name(tokenizer):
    before = tokenizer.chat_template
    with pytest.raises(ConfigError, match="'chatlm'.*alpaca.*Did you mean 'chatml'"):
        get_chat_template(tokenizer, "chatlm")
    assert tokenizer.chat_template == before


def test_invalid_template(tokenizer):
    before = tokenizer.chat_template
    with pytest.raises(ConfigError, match="does not render.*Correct the Jinja") as caught:
        get_chat_template(tokenizer, "{% for m in messages %}{{ m }}")
    assert isinstance(caught.value.__cause__, TemplateSyntaxError)
    assert tokenizer.chat_template == before


def test_wrong_arguments(tokenizer):
    with pytest.raises(ConfigError, match="mapping: 'rol'.*Did you mean 'role'"):
        get_chat_template(tokenizer, mapping={"rol": "from"})
    with pytest.raises(ConfigError, match="chat_template: 3.*Use 'chatml'"):
        get_chat_template(tokenizer, 3)
