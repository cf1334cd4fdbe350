"""Named chat templates against what the formats' authors render (`support.template_texts`)."""

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from hasten.data.generation_tag import without_markers
from hasten.data.named_templates import ALIASES, EOS, STOPS, named_template, resolve_template
from hasten.data.templates import ChatEncoder
from hasten.errors import ConfigError
from support import tiny
from support.template_texts import CALL, EXPECTED, SYSTEM, TOOL_TURNS, TURNS, WEATHER, WITH_TOOLS, WRITTEN

EVERY = pytest.mark.parametrize("name", STOPS)


def render(template, messages, **options):
    """Text and marked character spans, by transformers itself."""
    (text,), (spans,) = render_jinja_template(
        [[dict(message) for message in messages]],
        chat_template=template,
        return_assistant_tokens_mask=True,
        bos_token="<B>",
        eos_token="<E>",
        **options,
    )
    return text, spans


def knowing(template):
    """A small tokenizer that has this template and its tokens."""
    from transformers import AddedToken

    tokenizer = tiny.tokenizer()
    tokens = {"<B>", "<E>", "<think>", *(stop for stop in STOPS.values() if stop != EOS)}
    tokens |= {"<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<|im_sep|>", "<|user|>", "<|assistant|>"}
    tokens |= {"<｜User｜>", "<｜Assistant｜>", "<｜tool▁outputs▁end｜>", "[INST]", "[/INST]", "[TOOL_CALLS]"}
    tokenizer.add_tokens([AddedToken(token, special=True) for token in sorted(tokens)])
    tokenizer.bos_token, tokenizer.eos_token = "<B>", "<E>"
    tokenizer.chat_template = template
    return tokenizer


def test_every_template_is_tested():
    assert set(EXPECTED) == set(STOPS)
    assert set(ALIASES.values()) <= set(STOPS)


@EVERY
def test_several_turns_with_a_system_turn(name):
    assert render(named_template(name)[0], [SYSTEM, *TURNS])[0] == EXPECTED[name].full


@EVERY
def test_one_exchange_without_a_system_turn(name):
    assert render(named_template(name)[0], TURNS[:2])[0] == EXPECTED[name].short


@EVERY
def test_asking_for_the_answer(name):
    asked = render(named_template(name)[0], TURNS[:1], add_generation_prompt=True)[0]
    assert asked == EXPECTED[name].asked
    assert render(named_template(name)[0], TURNS[:2])[0].startswith(asked)


@EVERY
def test_markers_are_around_what_an_assistant_writes(name):
    template, stop = named_template(name)
    text, spans = render(template, [SYSTEM, *TURNS])
    end = "<E>" if stop == EOS else stop
    assert [text[start:end] for start, end in spans] == WRITTEN.get(name, [f"A1{end}", f"A2{end}"])


@EVERY
def test_markers_change_no_text(name):
    template = named_template(name)[0]
    plain = without_markers(template)
    assert render(plain, [SYSTEM, *TURNS])[0] == EXPECTED[name].full
    assert render(plain, [SYSTEM, *TURNS])[1] == []


@EVERY
def test_the_turn_ends_in_the_token_that_is_named(name):
    template, stop = named_template(name)
    text, spans = render(template, TURNS[:2])
    assert text[: spans[-1][1]].endswith("<E>" if stop == EOS else stop)


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_tools_calls_and_results(name):
    template = named_template(name)[0]
    text, spans = render(template, TOOL_TURNS, tools=[WEATHER])
    assert text == WITH_TOOLS[name]
    written = [text[start:end] for start, end in spans]
    assert len(written) == 2 and '{"city": "Oslo"}' in written[0] and "A1" in written[1]
    assert "cold" not in "".join(written)


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_arguments_that_are_text_are_not_quoted_again(name):
    turns = [dict(turn) for turn in TOOL_TURNS]
    turns[1]["tool_calls"] = [{**CALL, "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}]
    assert render(named_template(name)[0], turns, tools=[WEATHER])[0] == WITH_TOOLS[name]


@EVERY
@pytest.mark.parametrize("turn", [{"content": None}, {}, {"content": ""}, {"content": None, "tool_calls": None}])
def test_nothing_to_say_is_no_text(name, turn):
    turns = [{"role": "user", "content": "U1", "tool_calls": None, "name": None}, {"role": "assistant", **turn}]
    text, spans = render(named_template(name)[0], turns)
    assert "None" not in text and "null" not in text
    assert len(spans) == 1
    assert text == render(named_template(name)[0], [turns[0], {"role": "assistant", "content": ""}])[0]


@pytest.mark.parametrize("name", sorted(set(STOPS) - set(WITH_TOOLS)))
def test_a_format_without_tool_calls_refuses_them(name):
    from jinja2 import TemplateError

    with pytest.raises(TemplateError, match="no tool calls"):
        render(named_template(name)[0], TOOL_TURNS)


@pytest.mark.parametrize("name", ["gemma", "mistral"])
def test_formats_of_question_and_answer_refuse_other_orders(name):
    from jinja2 import TemplateError

    with pytest.raises(TemplateError, match="turn 2 is user"):
        render(named_template(name)[0], [TURNS[0], TURNS[2]])


def test_mistral_refuses_ids_of_another_length():
    from jinja2 import TemplateError

    turns = [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": "call_1"}]}]
    with pytest.raises(TemplateError, match="id of 9 characters"):
        render(named_template("mistral")[0], turns)
    with pytest.raises(TemplateError, match="tool_call_id of 9 characters"):
        render(named_template("mistral")[0], [*TOOL_TURNS[:2], {"role": "tool", "content": "cold"}])


def test_qwen3_thinking():
    """Qwen/Qwen3-8B: thinking of earlier answers is dropped, that of the last is kept, asked for or given apart."""
    template = named_template("qwen-3")[0]
    turns = [
        TURNS[0],
        {"role": "assistant", "content": "<think>\nfirst\n</think>\n\nA1"},
        TURNS[2],
        {"role": "assistant", "content": "<think>\nsecond\n</think>\n\nA2"},
    ]
    expected = (
        "<|im_start|>user\nU1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n<|im_start|>user\nU2<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nsecond\n</think>\n\nA2<|im_end|>\n"
    )
    assert render(template, turns)[0] == expected
    apart = [*turns[:3], {"role": "assistant", "content": "A2", "reasoning_content": "second"}]
    assert render(template, apart)[0] == expected
    asked = render(template, TURNS[:1], add_generation_prompt=True, enable_thinking=False)[0]
    assert asked.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_the_day_can_be_given():
    text = render(named_template("llama-3.2")[0], TURNS[:2], date_string="01 Jan 2025")[0]
    assert "Today Date: 01 Jan 2025\n\n" in text and "26 Jul" not in text


@pytest.mark.parametrize("name", STOPS)
@pytest.mark.parametrize("messages", [[SYSTEM, *TURNS], TURNS[:2], TURNS], ids=["system", "one", "two"])
def test_spans_by_markers_and_by_rendering_agree(name, messages):
    template = named_template(name)[0]
    text, marked = render(template, messages)
    with_markers = ChatEncoder(knowing(template)).assistant_spans(messages)
    by_rendering = ChatEncoder(knowing(without_markers(template))).assistant_spans(messages)
    assert by_rendering == (text, marked)
    assert with_markers == (text, marked)


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_spans_of_calls_by_markers_and_by_rendering_agree(name):
    template = named_template(name)[0]
    expected = render(template, TOOL_TURNS)
    assert ChatEncoder(knowing(template)).assistant_spans(TOOL_TURNS) == expected
    assert ChatEncoder(knowing(without_markers(template))).assistant_spans(TOOL_TURNS) == expected


@pytest.mark.parametrize("name", [*STOPS, *ALIASES])
def test_names_in_any_case(name):
    text, stop = named_template(f" {name.upper()} ")
    assert (text, stop) == named_template(ALIASES.get(name, name))
    assert "{%- generation -%}" in text and not text.endswith("\n")


@pytest.mark.parametrize(
    ("name", "nearest"), [("chatlm", "chatml"), ("lama-3.1", "llama-3.1"), ("qwen-25x", "qwen-25")]
)
def test_unknown_names_are_refused_with_the_nearest(name, nearest):
    with pytest.raises(ConfigError, match=f"'{name}'.*alpaca, chatml.*Did you mean '{nearest}'"):
        named_template(name)


def test_a_name_like_no_other_is_refused():
    with pytest.raises(ConfigError, match="'zzz'.*keep the model's own"):
        named_template("zzz")


def test_resolving_a_name_a_file_and_jinja(tmp_path):
    jinja = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (tmp_path / "mine ö.jinja").write_bytes(b"\xef\xbb\xbf" + jinja.encode())
    assert resolve_template("chatml") == named_template("chatml")[0]
    assert resolve_template(str(tmp_path / "mine ö.jinja")) == jinja
    assert resolve_template(jinja) == jinja


def test_a_name_goes_before_a_file_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chatml").write_text("{{ 'file' }}")
    assert resolve_template("chatml") == named_template("chatml")[0]
    assert resolve_template("./chatml") == "{{ 'file' }}"


def test_a_turn_ends_in_a_token_of_the_model():
    tokenizer = tiny.tokenizer()
    template = resolve_template("gemma", tokenizer)
    assert "<end_of_turn>" not in template and "<|im_end|>" in template
    assert resolve_template("chatml", tokenizer) == named_template("chatml")[0]
    assert resolve_template("mistral", tokenizer) == named_template("mistral")[0]


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("chatlm", "Did you mean 'chatml'"),
        ("mine.jina", r"Did you mean '.*mine\.jinja'"),
        ("nowhere/mine.jinja", "Leave it empty"),
        ("", "Leave it empty"),
        ("x" * 5000, "Leave it empty"),
    ],
)
def test_what_is_no_name_no_file_and_no_jinja_is_refused(text, remedy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jinja").write_text("{{ 1 }}")
    with pytest.raises(ConfigError, match=f"data.template: '{text[:60]}.*none of them.*{remedy}") as caught:
        resolve_template(text)
    assert len(str(caught.value)) < 600


def test_a_folder_is_no_template(tmp_path):
    with pytest.raises(ConfigError, match="none of them.*a .jinja file"):
        resolve_template(str(tmp_path))


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "latin.jinja"
    path.write_bytes(b"{# one #}\n{# caf\xe9 #}")
    with pytest.raises(ConfigError, match=r"latin.jinja: line 2: byte 0xe9 is not UTF-8.*Convert"):
        resolve_template(str(path))


def test_wrong_jinja_is_refused_with_file_and_line(tmp_path):
    path = tmp_path / "wrong.jinja"
    path.write_text("{% for m in messages %}\n{{ m.content }\n{% endfor %}")
    with pytest.raises(ConfigError, match=r"data.template .*wrong.jinja: line 2: .*Correct that line"):
        resolve_template(str(path))
    with pytest.raises(ConfigError, match=r"data.template: line 1: "):
        resolve_template("{% for m in messages %}")
