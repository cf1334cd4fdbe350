"""A chat template written as an example: `{SYSTEM}`, `{INPUT}` and `{OUTPUT}` in the text of one or two exchanges.

    {SYSTEM}\\nUSER: {INPUT}\\nASSISTANT: {OUTPUT}</s>\\nUSER: {INPUT}\\nASSISTANT: {OUTPUT}</s>
    ^ system  ^ opening      ^ header           ^ end  ^ between                             ^ end, then the tail

From it come a Jinja template, which renders rows and prompts, and Ollama's, which serves the model. The second exchange
shows what stands between two; where it is left out, everything from behind `{SYSTEM}` is repeated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix

from hasten.compat.quoting import quoted
from hasten.errors import ConfigError, did_you_mean

_SUBJECT = "chat_template"
_PLACE = re.compile(r"\{([A-Z_]+)\}")
_PLACES = ("SYSTEM", "INPUT", "OUTPUT")
_SHOWN = 60
_QUOTES = '"""'
_TEXTS = ("before", "opening", "header", "end", "between", "tail")


@dataclass(frozen=True)
class WrittenTemplate:
    """The stretches of text of a template; `{SYSTEM}`, questions and answers stand between them."""

    before: str
    """In front of the system text; without one, a begin token or nothing."""
    has_system: bool
    opening: str
    """In front of the first question, behind the system text if there is one."""
    header: str
    """Between a question and its answer."""
    end: str
    """Behind an answer, part of what is learnt."""
    between: str
    """Behind `end`, in front of the next question."""
    tail: str
    """Behind the last `end`."""

    @property
    def instruction_part(self) -> str:
        """The text in front of every question; empty where there is none."""
        shared = commonprefix([self.opening[::-1], self.between[::-1]])[::-1]
        return shared if shared.strip() else ""

    @property
    def response_part(self) -> str:
        """The text in front of every answer. Blanks at its end are the answer's: they are one token with its word."""
        return self.header.rstrip(" ")

    def jinja(self, default_system: str, *, bos: bool) -> str:
        """The template for transformers, with generation markers.

        Args:
            default_system: stands where a conversation has no system turn.
            bos: write the begin token first.
        """
        lead = self.header[len(self.response_part) :]
        before, default = quoted(self.before), quoted(default_system)
        first, later, header = quoted(self.opening), quoted(self.between), quoted(self.response_part)
        refusal = "{{- raise_exception('this template has no place for a system turn') if has_system -}}"
        text = f" + (messages[0]['content'] if has_system else {default})" if self.has_system else ""
        lines = [
            "{{- bos_token -}}" if bos else "",
            "{%- set has_system = messages[0]['role'] == 'system' -%}",
            "" if self.has_system else refusal,
            f"{{{{- {before}{text} -}}}}",
            "{%- for message in (messages[1:] if has_system else messages) -%}",
            "{%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') or message['tool_calls'] -%}",
            "{{- raise_exception('this template has questions and answers in turn, and no tool calls') -}}",
            "{%- elif message['role'] == 'user' -%}",
            f"{{{{- ({first} if loop.first else {later}) + message['content'] + {header} -}}}}",
            "{%- else -%}",
            "{%- generation -%}",
            f"{{{{- {quoted(lead)} + message['content'] + {quoted(self.end)} -}}}}",
            "{%- endgeneration -%}",
            f"{{{{- {quoted(self.tail)} if loop.last else '' -}}}}" if self.tail else "",
            "{%- endif -%}",
            "{%- endfor -%}",
        ]
        return "\n".join(line for line in lines if line)

    def modelfile(self, default_system: str, stops: Sequence[str]) -> str:
        """Ollama's file for the model; its first line names the weights and is to be corrected.

        Args:
            default_system: as in `jinja`.
            stops: texts that end an answer.

        Raises:
            ConfigError: three quotes in a row, which end a text of this file.
        """
        for name, text in (
            (_SUBJECT, "".join(getattr(self, name) for name in _TEXTS)),
            ("default_system_message", default_system),
        ):
            if _QUOTES in text:
                rule = "Ollama's Modelfile has it between three quotes."
                raise ConfigError(name, f"{_QUOTES} in it", rule, "Use other quotes.")
        opening = _go(self.before) + ("{{ $.System }}" if self.has_system else "") + _go(self.opening)
        template = (
            "{{ $first := true }}{{ range .Messages }}"
            '{{ if eq .Role "user" }}'
            f"{{{{ if $first }}}}{opening}{{{{ $first = false }}}}{{{{ else }}}}{_go(self.between)}{{{{ end }}}}"
            f"{{{{ .Content }}}}{_go(self.response_part)}"
            '{{ else if eq .Role "assistant" }}'
            f"{_go(self.header[len(self.response_part) :])}{{{{ .Content }}}}{_go(self.end)}"
            "{{ end }}{{ end }}"
        )
        lines = ["FROM ./model.gguf", f"TEMPLATE {_QUOTES}{template}{_QUOTES}"]
        if self.has_system and default_system:
            lines.append(f"SYSTEM {_QUOTES}{default_system}{_QUOTES}")
        lines += [f'PARAMETER stop "{stop}"' for stop in stops]
        return "\n".join(lines) + "\n"


def parse_written(
    text: str, ends: Sequence[str], controls: Sequence[str], bos: str, *, keep_bos: bool
) -> WrittenTemplate:
    """Take an example apart.

    Args:
        text: one or two exchanges.
        ends: tokens that end an answer; the first one is put behind answers that the example does not end.
        controls: the model's control tokens; one of them ends an answer if it ends questions too, or the example.
        bos: the begin token, or nothing; the example may begin with it.
        keep_bos: it stays the first text then, though never in front of later exchanges.

    Raises:
        ConfigError: places that are unknown, missing, or in another order; two exchanges that are unlike.
    """
    opening, header, tail, middle = _split(text.removeprefix(bos))
    begin = bos if keep_bos and text.startswith(bos) else ""
    candidates = [*ends, *(token for token in controls if _starts(header, token) or _starts(tail, token))]
    before, has_system, behind = opening.rpartition("{SYSTEM}")
    closing = _end(tail, candidates)
    inner = _end(middle, candidates) if middle is not None else ""
    if inner and closing and inner.strip() != closing.strip():
        rule = "All answers end alike."
        raise ConfigError(_SUBJECT, f"{inner!r} and {closing!r}", rule, "End both exchanges with the same token.")
    end = inner or closing or (ends[0] if ends else "")
    rest = tail[len(closing) :]
    if middle is not None:
        between = middle[len(inner) :]
    elif behind.startswith(end + rest):  # it ends the system turn in the same way
        between = behind[len(end) :]
    else:
        between = rest + behind
    if not end.strip():
        rule = "A model learns to stop by a token that ends its answers, and this tokenizer has no eos_token."
        raise ConfigError(_SUBJECT, "no end of an answer", rule, "Pass extra_eos_tokens=['<token>'].")
    return WrittenTemplate(begin + before, bool(has_system), behind, header, end, between, rest)


def _split(text: str) -> tuple[str, str, str, str | None]:
    """What stands before the first question, before answers, behind the last one, and between two exchanges."""
    found = [place[1] for place in _PLACE.finditer(text)]
    for name in found:
        if name not in _PLACES:
            rule = "Its places are {SYSTEM}, {INPUT} and {OUTPUT}."
            raise ConfigError(_SUBJECT, f"'{{{name}}}'", rule, did_you_mean(name, _PLACES, "Use one of them."))
    exchange = ["INPUT", "OUTPUT"]
    turns = found[1:] if found[:1] == ["SYSTEM"] else found
    if turns not in (exchange, exchange * 2):
        value = " ".join(f"{{{name}}}" for name in found) or f"no places in {text[:_SHOWN]!r}"
        rule = "It has {INPUT} and {OUTPUT}, once or twice, with {SYSTEM} before them or not at all."
        raise ConfigError(_SUBJECT, value, rule, "Write one or two exchanges in this order.")
    opening, rest = text.split("{INPUT}", 1)
    header, rest = rest.split("{OUTPUT}", 1)
    if not header.strip():
        rule = "It is how the model sees where its answer begins."
        raise ConfigError(_SUBJECT, "no text between {INPUT} and {OUTPUT}", rule, "Write a header of the answer.")
    if len(turns) == 2:
        return opening, header, rest, None
    middle, rest = rest.split("{INPUT}", 1)
    second, tail = rest.split("{OUTPUT}", 1)
    if second != header:
        rule = "Both exchanges of the example are written alike."
        raise ConfigError(_SUBJECT, f"{header!r} and {second!r}", rule, "Write the same between {INPUT} and {OUTPUT}.")
    return opening, header, tail, middle


def _starts(text: str, token: str) -> bool:
    return text.lstrip().startswith(token)


def _end(text: str, tokens: Sequence[str]) -> str:
    """The beginning of a text through its first token, white space before it included; nothing without one."""
    blanks = len(text) - len(text.lstrip())
    longest = max((token for token in tokens if _starts(text, token)), key=len, default="")
    return text[: blanks + len(longest)] if longest else ""


def _go(text: str) -> str:
    """Text of a Go template."""
    return text.replace("{{", '{{ "{{" }}')
