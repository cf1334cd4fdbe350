import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from hasten.compat.quoting import quoted


@pytest.mark.parametrize(
    "text", ["", "it's", 'a "b"', "back\\slash\\n", "two\nlines\r\n", "{{ x }} {% y %} }}", "ünlike 你好"]
)
def test_any_text_is_a_jinja_string(text):
    assert render_jinja_template([[]], chat_template="{{- " + quoted(text) + " -}}")[0][0] == text
