"""The tag that marks in a chat template what an assistant writes: `{% generation %} ... {% endgeneration %}`.

transformers knows it and makes a mask of it; plain Jinja does not, nor do several programs that serve models. So a
template is checked here in a sandbox that knows the tag, and can be given away without it.
"""

from __future__ import annotations

import re

from jinja2 import TemplateSyntaxError, nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hasten.errors import ConfigError

_TAG = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


class GenerationTag(Extension):
    """Lets Jinja read the tag; what is inside is rendered as if the tag were not there."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """The statements between the tags, in a scope of their own."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def check_template(text: str, subject: str) -> str:
    """The text, if it is Jinja that chat templates may be written in.

    Args:
        text: a chat template.
        subject: the setting or file it comes from, for the message.

    Raises:
        ConfigError: it is not valid Jinja; line and reason are named.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, LoopControlExtension]
    )
    try:
        environment.from_string(text)
    except TemplateSyntaxError as cause:
        rule = "A chat template is Jinja."
        raise ConfigError(subject, f"line {cause.lineno}: {cause.message}", rule, "Correct that line.") from cause
    return text


def without_markers(text: str) -> str:
    """The template for programs that do not know the tag; it renders the same text.

    The tags become ``if true`` and ``endif``, which keep their white space control; leaving them out would not.
    """
    return _TAG.sub(lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", text)
