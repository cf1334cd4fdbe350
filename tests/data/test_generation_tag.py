import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from hasten.data.generation_tag import check_template, without_markers
from hasten.errors import ConfigError

MARKED = (
    "{%- for message in messages %}\n  {{- message.role + ': ' }}\n"
    "  {%- if message.role == 'assistant' -%} {%- generation -%} {{ message.content }}! {% endgeneration -%} \n"
    "  {%- else %} {{ message.content }} {% endif %}\n{% endfor %}"
)
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def rendered(template):
    return render_jinja_template([TURNS], chat_template=template)[0][0]


@pytest.mark.parametrize(
    "text", ["plain", "{{ messages[0].content }}", MARKED, "{% for m in x %}{% break %}{% endfor %}"]
)
def test_valid_templates_come_back_as_they_are(text):
    assert check_template(text, "data.template") == text


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a\n{% for m in messages %}", 2, "Unexpected end of template"),
        ("{{ messages[0] }", 1, "unexpected '}'"),
        ("\n\n{% generation %}x", 3, "endgeneration"),
        ("{% sting %}", 1, "unknown tag 'sting'"),
        ("{{ x | tojsn }}", 1, "No filter named 'tojsn'"),
    ],
)
def test_invalid_jinja_is_refused_with_its_line(text, line, reason):
    with pytest.raises(ConfigError, match=f"data.template: line {line}: .*Correct that line") as caught:
        check_template(text, "data.template")
    assert reason in str(caught.value)


def test_without_markers_the_text_is_the_same():
    plain = without_markers(MARKED)
    assert "generation" not in plain and plain != MARKED
    assert rendered(plain) == rendered(MARKED)
    assert "assistant: b! " in rendered(plain)


def test_only_the_tag_is_taken_for_a_marker():
    text = "{% if add_generation_prompt %}{{ 'a generation' }}{% endif %}"
    assert without_markers(text) == text
    assert without_markers("{%+generation+%}x{%endgeneration%}") == "{%+ if true +%}x{% endif %}"
