import pytest
from jinja2 import TemplateSyntaxError

from hasten.compat.chat_templates import (
    CHAT_TEMPLATES,
    apply_chat_template,
    construct_chat_template,
    get_chat_template,
    to_sharegpt,
)
from hasten.compat.named_templates import EOS, named_template
from hasten.errors import CapabilityError, ConfigError
from support import tiny

TURNS = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U1"},
    {"role": "assistant", "content": "A1"},
    {"role": "user", "content": "U2"},
    {"role": "assistant", "content": "A2"},
]
# As the formats' authors describe them; <B> and <E> stand for the begin and end tokens.
RENDERED = {
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
    "<|im_start|>user\nU2<|im_end|>\n<|im_start|>assistant\nA2<|im_end|>\n",
    "qwen-2.5": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
    "<|im_start|>user\nU2<|im_end|>\n<|im_start|>assistant\nA2<|im_end|>\n",
    "phi-4": "<|im_start|>system<|im_sep|>S<|im_end|><|im_start|>user<|im_sep|>U1<|im_end|>"
    "<|im_start|>assistant<|im_sep|>A1<|im_end|><|im_start|>user<|im_sep|>U2<|im_end|>"
    "<|im_start|>assistant<|im_sep|>A2<|im_end|>",
    "llama-3": "<B><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nU1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nU2<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA2<|eot_id|>",
    "llama-3.1": "<B><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\nS<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nU1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA1<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nU2<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA2<|eot_id|>",
    "gemma": "<B><start_of_turn>user\nS\n\nU1<end_of_turn>\n<start_of_turn>model\nA1<end_of_turn>\n"
    "<start_of_turn>user\nU2<end_of_turn>\n<start_of_turn>model\nA2<end_of_turn>\n",
    "phi-3": "<|system|>\nS<|end|>\n<|user|>\nU1<|end|>\n<|assistant|>\nA1<|end|>\n"
    "<|user|>\nU2<|end|>\n<|assistant|>\nA2<|end|>\n",
    "mistral": "<B>[INST] S\n\nU1 [/INST] A1<E>[INST] U2 [/INST] A2<E>",
    "zephyr": "<|system|>\nS<E>\n<|user|>\nU1<E>\n<|assistant|>\nA1<E>\n<|user|>\nU2<E>\n<|assistant|>\nA2<E>\n",
    "vicuna": "<B>S USER: U1 ASSISTANT: A1<E>USER: U2 ASSISTANT: A2<E>",
    "alpaca": "<B>S\n\n### Instruction:\nU1\n\n### Response:\nA1<E>\n\n"
    "### Instruction:\nU2\n\n### Response:\nA2<E>\n\n",
}
BEFORE_AN_ANSWER = {
    "chatml": "<|im_start|>assistant\n",
    "gemma": "<start_of_turn>model\n",
    "mistral": " [/INST]",
    "vicuna": " ASSISTANT:",
    "alpaca": "### Response:\n",
}


@pytest.fixture
def tokenizer():
    return tiny.tokenizer()


@pytest.mark.parametrize("name", RENDERED)
def test_named(tokenizer, name):
    stop = named_template(name)[1]
    made = get_chat_template(tokenizer, name)
    assert made is tokenizer
    expected = RENDERED[name].replace("<B>", "<|im_start|>").replace("<E>", "<|im_end|>")
    if stop != EOS:  # no token of this model: its own end stands for it
        expected = expected.replace(stop, "<|im_end|>")
    assert made.apply_chat_template(TURNS, tokenize=False) == expected
    assert made.eos_token == "<|im_end|>"


@pytest.mark.parametrize("name", BEFORE_AN_ANSWER)
def test_generation_prompt(tokenizer, name):
    made = get_chat_template(tokenizer, name)
    asked = made.apply_chat_template(TURNS[1:2], tokenize=False, add_generation_prompt=True)
    assert asked.endswith(BEFORE_AN_ANSWER[name])
    assert made.apply_chat_template(TURNS[1:3], tokenize=False).startswith(asked.rstrip(" "))


def test_all_named_are_tested():
    assert {name for name in CHAT_TEMPLATES if named_template(name) == CHAT_TEMPLATES[name]} >= set(RENDERED)
    assert len(CHAT_TEMPLATES) > len(RENDERED)  # other spellings of the same
    assert CHAT_TEMPLATES["gemma-3"] == CHAT_TEMPLATES["gemma"]


def test_equal_to_the_models_own(demo_tokenizer):
    import copy

    ours = get_chat_template(copy.deepcopy(demo_tokenizer), "chatml")
    for ask in (False, True):
        options = {"tokenize": False, "add_generation_prompt": ask}
        assert ours.apply_chat_template(TURNS, **options) == demo_tokenizer.apply_chat_template(TURNS, **options)


def test_sharegpt_mapping(tokenizer):
    mapping = {"role": "from", "content": "value", "user": "human", "assistant": "gpt"}
    made = get_chat_template(tokenizer, "chatml", mapping=mapping, map_eos_token=True)
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    expected = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
    assert made.apply_chat_template(turns, tokenize=False) == expected
    standard = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert made.apply_chat_template(standard, tokenize=False) == expected


def test_system_message(tokenizer):
    text = 'It\'s "quoted" \\ and\nünlike'
    made = get_chat_template(tokenizer, "chatml", system_message=text)
    rendered = made.apply_chat_template(TURNS[1:3], tokenize=False)
    assert rendered.startswith(f"<|im_start|>system\n{text}<|im_end|>\n<|im_start|>user")
    assert made.apply_chat_template(TURNS, tokenize=False) == RENDERED["chatml"]


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
    assert made.apply_chat_template(TURNS[1:3], tokenize=False) == "user:U1<|im_end|>assistant:A1<|im_end|>"
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


def test_not_offered():
    for function in (apply_chat_template, to_sharegpt, construct_chat_template):
        with pytest.raises(CapabilityError, match="hasten does not offer this yet"):
            function([])
