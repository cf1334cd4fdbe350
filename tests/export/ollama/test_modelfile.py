"""Modelfiles: what is written reads back equal, and what cannot be written is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import CapabilityError, ConfigError, ModelError
from hasten.export.ollama.modelfile import Modelfile, modelfile, parse, require_adapters, sampling


def test_a_whole_file():
    text = modelfile(
        "model-q4_k_m.gguf",
        "{{ range .Messages }}\n{{ .Content }}{{ end }}",
        ["<|im_end|>", "<|endoftext|>", "<|im_end|>"],
        'You are "Ada".',
        {"temperature": 0.7, "top_k": 40, "num_ctx": 8192},
        comments=["Made by hand.", "Two\nlines."],
    )
    assert text == (
        "# Made by hand.\n# Two\n# lines.\n"
        "FROM ./model-q4_k_m.gguf\n"
        'TEMPLATE """{{ range .Messages }}\n{{ .Content }}{{ end }}"""\n'
        'SYSTEM """You are "Ada"."""\n'
        "PARAMETER temperature 0.7\nPARAMETER top_k 40\nPARAMETER num_ctx 8192\n"
        'PARAMETER stop "<|im_end|>"\nPARAMETER stop "<|endoftext|>"\n'
    )
    parameters = {
        "temperature": "0.7",
        "top_k": "40",
        "num_ctx": "8192",
        "stop": ["<|im_end|>", "<|endoftext|>"],
    }
    template = "{{ range .Messages }}\n{{ .Content }}{{ end }}"
    assert parse(text) == Modelfile("./model-q4_k_m.gguf", template, 'You are "Ada".', None, parameters)


def test_the_least():
    assert modelfile("a b.gguf", None, []) == "FROM ./a b.gguf\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " around ",
        "\nlines\n\n",
        '"quoted"',
        'ends with a quote"',
        'two ""',
        'three """ in one line',
        "# no comment\nFROM elsewhere\n",
        "é 日本語 🙂",
        "tab\tand\\backslash",
        "windows\r\nlines",
    ],
)
def test_texts_arrive(text):
    assert parse(modelfile("m.gguf", None, [text] if text else [], text)).system == text
    if text:
        assert parse(modelfile("m.gguf", None, [text])).parameters["stop"] == [text]


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_any_text_arrives_or_is_refused(text):
    try:
        written = modelfile("m.gguf", text, [], text)
    except ConfigError:
        return
    assert (parse(written).template, parse(written).system) == (text, text)


@pytest.mark.parametrize("text", ['"""three quotes"""\nin lines', "no\u00a0break", "zero\u200bwidth"])
def test_texts_that_cannot_arrive_are_refused(text):
    with pytest.raises(ConfigError) as caught:
        modelfile("m.gguf", None, [], text)
    assert caught.value.subject == "the Modelfile's SYSTEM"
    assert "quotes" in caught.value.rule and "not printable" in caught.value.rule


@pytest.mark.parametrize("name", ["", "a/b.gguf", "../b.gguf", "..", " a.gguf", "a\\b.gguf", "/a.gguf"])
def test_files_lie_beside(name):
    with pytest.raises(ConfigError) as caught:
        modelfile(name, None, [])
    assert repr(name) in caught.value.value
    assert "without a folder" in caught.value.remedy


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "0.7"])
def test_parameters_are_numbers(value):
    with pytest.raises(ConfigError, match="hasten writes numbers"):
        modelfile("m.gguf", None, [], None, {"temperature": value})


def test_parameters_have_names():
    with pytest.raises(ConfigError, match="no name"):
        modelfile("m.gguf", None, [], None, {"top p": 1})


def test_what_people_write():
    text = (
        "\ufeff# a comment\n\nfrom ./m.gguf\nParameter stop </s>\n  PARAMETER top_p 0.9\n"
        'TEMPLATE "{{ .Prompt }}"\nSYSTEM You are Mario.\nLICENSE """\nany\n"""\nADAPTER ./a.gguf'
    )
    parameters = {"stop": ["</s>"], "top_p": "0.9"}
    assert parse(text) == Modelfile("./m.gguf", "{{ .Prompt }}", "You are Mario.", "./a.gguf", parameters)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("SYSTEM x\n", "no FROM line"),
        ("", "no FROM line"),
        ("FORM ./m.gguf\n", "'FORM ./m.gguf"),
        ("FROM\n", "'FROM"),
        ('FROM x\nSYSTEM """open\n', "open"),
        ("FROM x\nPARAMETER stop\n", "stop"),
    ],
)
def test_files_that_cannot_be_read(text, named):
    with pytest.raises(ModelError) as caught:
        parse(text)
    assert named in caught.value.value
    assert "docs.ollama.com" in caught.value.remedy


@pytest.mark.parametrize("version", ["0.5.7", "0.34.0", "v0.12.3", "0.34.0-rc1"])
def test_versions_with_adapters(version):
    require_adapters(version)
    text = modelfile("m.gguf", None, [], adapter="a.gguf")
    assert text == "FROM ./m.gguf\nADAPTER ./a.gguf\n"
    assert parse(text).adapter == "./a.gguf"


@pytest.mark.parametrize("version", ["0.34.1", "0.40.0", "1.0.0", "unknown"])
def test_versions_without_adapters(version):
    with pytest.raises(CapabilityError) as caught:
        require_adapters(version)
    assert version in caught.value.subject
    assert "0.34.1" in caught.value.rule and "merged" in caught.value.remedy


@pytest.mark.parametrize(
    ("held", "numbers"),
    [
        (None, {}),
        ({}, {}),
        ({"eos_token_id": 2, "temperature": None}, {}),
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50, "top_p": 1.0}),
        (
            {
                "do_sample": True,
                "temperature": 0.6,
                "top_k": 20,
                "top_p": 0.95,
                "min_p": 0.05,
                "repetition_penalty": 1.05,
            },
            {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05, "repeat_penalty": 1.05},
        ),
        (
            {"do_sample": False, "temperature": 0.9, "repetition_penalty": 1.1},
            {"temperature": 0, "repeat_penalty": 1.1},
        ),
        ({"temperature": 0.7}, {"temperature": 0.7}),
    ],
)
def test_sampling(held, numbers):
    assert sampling(held) == numbers
    assert sampling(held, num_ctx=4096) == {**numbers, "num_ctx": 4096}
    if held is not None:
        from transformers import GenerationConfig

        assert sampling(GenerationConfig(**held)) == numbers


@pytest.mark.parametrize("window", [0, -1, True, 2.5])
def test_a_context_window_is_a_number_of_tokens(window):
    with pytest.raises(ConfigError) as caught:
        sampling({}, num_ctx=window)
    assert caught.value.subject == "num_ctx" and repr(window) in caught.value.value
