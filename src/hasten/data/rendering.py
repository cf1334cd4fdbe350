"""The model's own chat template: rendered in transformers' sandbox, never changed.

Some templates print today's date. Rows are rendered with one day, named in the report: a macro of the name that the
sandbox offers is set in front of the template, so nothing in the template or in transformers is touched.

Some templates show content only as a list of parts, as rows with pictures have it, and drop or refuse text. Which form
a template reads is tried once; messages are given to it in that form.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hasten.data.conversation import Conversation, Message, RowProblem

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_DIRECTIVES = "aAbBdmyYjHMSpfIUWwx"
_PROBE_NAME, _PROBE_VALUE, _PROBE_QUESTION = "zqcall", "zqvalue", "zqquestion"
_PROBE_TOOL = {
    "type": "function",
    "function": {"name": _PROBE_NAME, "description": "a", "parameters": {"type": "object", "properties": {}}},
}


@dataclass(frozen=True)
class _CallForm:
    """How calls are given to a template: arguments as a mapping or as JSON text, absent content as empty or as None."""

    as_text: bool
    no_content: bool

    def given(self, message: Message) -> Message:
        """A message with its calls in this form."""
        if "tool_calls" not in message:
            return message
        content = None if self.no_content and not message["content"] else message["content"]
        calls = message["tool_calls"]
        if self.as_text:
            calls = [{**call, "function": _with_text_arguments(call["function"])} for call in calls]
        return {**message, "content": content, "tool_calls": calls}


_CALL_FORMS = tuple(_CallForm(as_text, no_content) for as_text in (False, True) for no_content in (False, True))


class Renderer:
    """A tokenizer's chat template.

    Args:
        tokenizer: with a chat template; it is read, never changed.
        day: the day that the template prints; None is the day of rendering.
    """

    def __init__(self, tokenizer: Any, day: datetime.date | None = None) -> None:
        self._tokenizer = tokenizer
        self._prologue = _frozen_clock(day) if day else ""
        self._support: dict[str, Any] = {}
        self._markers: dict[str, bool] = {}
        self._parts: dict[str, bool] = {}

    def template(self, tools: Any = None) -> str:
        """The template's text; with tools it may be another one of the tokenizer's."""
        text = self._tokenizer.get_chat_template(None, tools)
        return self._prologue + text if self._prologue and self.prints_date(text) else text

    @staticmethod
    def prints_date(template: str) -> bool:
        """Whether a template asks for the date."""
        return "strftime_now" in template

    def has_markers(self, tools: Any = None) -> bool:
        """Whether the template says itself what an assistant writes."""
        text = self.template(tools)
        if text not in self._markers:
            self._markers[text] = _GENERATION.search(text) is not None
        return self._markers[text]

    def render(self, messages: Sequence[Message], tools: Any = None, ask: bool = False) -> str:
        """The text of these messages.

        Args:
            messages: with role and content.
            tools: tool schemas.
            ask: add the header of the next assistant turn.

        Raises:
            RowProblem: the template does not accept them; the roles are named.
        """
        return self._rendered([messages], tools, ask)[0][0]

    def render_all(self, conversations: Sequence[Conversation]) -> list[str | RowProblem]:
        """The texts of many conversations without tools; a problem in place of a text where there is one."""
        try:
            return (
                list(self._rendered([talk.messages for talk in conversations], None, False)[0]) if conversations else []
            )
        except RowProblem:
            return [self._attempt(talk.messages) for talk in conversations]

    def generated(self, messages: Sequence[Message], tools: Any = None) -> tuple[str, list[tuple[int, int]]]:
        """The text, and what the template's own markers call generated, as character spans.

        Raises:
            RowProblem: as `render`.
        """
        texts, spans = self._rendered([messages], tools, False, markers=True)
        return texts[0], [(int(start), int(stop)) for start, stop in spans[0]]

    def supported(self, conversation: Conversation) -> tuple[Conversation, bool, bool]:
        """The conversation in the form that the template reads, and whether calls and tools had to become text."""
        has_calls = any("tool_calls" in message for message in conversation.messages)
        if not has_calls and not conversation.tools:
            return conversation, False, False
        from hasten.data.tools import without_tool_support
        from hasten.data.turns import system_folded

        tools = bool(conversation.tools) and not self._shows_tools()
        form = self._call_form(bool(conversation.tools) and not tools) if has_calls else None
        calls = has_calls and form is None
        made = without_tool_support(conversation, calls=calls, tools=tools) if calls or tools else conversation
        if len(made.messages) > len(conversation.messages) and not self._takes_system():
            made = system_folded(made)
        if form is not None:
            made = Conversation([form.given(message) for message in made.messages], made.tools, made.learn)
        return made, calls, tools

    def _attempt(self, messages: Sequence[Message]) -> str | RowProblem:
        try:
            return self.render(messages)
        except RowProblem as problem:
            return problem

    def _rendered(
        self, conversations: Sequence[Sequence[Message]], tools: Any, ask: bool, markers: bool = False
    ) -> tuple[list[str], list[Any]]:
        """The texts and, where asked for, the marked spans of conversations."""
        template = self.template(tools)
        if template not in self._parts:
            self._parts[template] = False  # while it is being tried
            self._parts[template] = self._takes_parts(template, tools)
        if self._parts[template]:
            conversations = [[_in_parts(message) for message in messages] for messages in conversations]
        return self._made(template, conversations, tools, ask, markers)

    def _made(
        self,
        template: str,
        conversations: Sequence[Sequence[Message]],
        tools: Any = None,
        ask: bool = False,
        markers: bool = False,
    ) -> tuple[list[str], list[Any]]:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            made: Any = render_jinja_template(
                conversations=[list(messages) for messages in conversations],  # type: ignore[arg-type]
                tools=tools,
                chat_template=template,
                return_assistant_tokens_mask=markers,
                add_generation_prompt=ask,
                **self._tokenizer.special_tokens_map,
            )
        except (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError) as cause:
            # Whatever a template's own code runs into on these messages is theirs, not a fault of the program.
            roles = [message["role"] for message in conversations[0]]
            named = " ".join(roles[:8]) + (" ..." if len(roles) > 8 else "")
            raise RowProblem(f"the chat template refuses the turns '{named}' ({cause})") from cause
        return made

    def _takes_parts(self, template: str, tools: Any) -> bool:
        """Whether the template shows more of a conversation when contents are lists of parts."""
        for roles in ("system", "user", "assistant"), ("user", "assistant"):
            talk = [_turn(role, f"{_PROBE_VALUE}{role}") for role in roles]
            as_text = self._shown(template, talk, talk, tools)
            if as_text == len(talk):
                return False
            as_parts = self._shown(template, [_in_parts(message) for message in talk], talk, tools)
            if as_text or as_parts:
                return as_parts > as_text
        return False

    def _shown(self, template: str, given: Sequence[Message], talk: Sequence[Message], tools: Any) -> int:
        """How many contents of a conversation, given to the template in some form, are in its text."""
        try:
            text = self._made(template, [given], tools)[0][0]
        except RowProblem:
            return 0
        if "'type'" in text:  # it wrote the list itself
            return 0
        return sum(message["content"] in text for message in talk)

    def _call_form(self, with_tools: bool) -> _CallForm | None:
        """How the template takes calls; None where it does not. With tools it may be another template."""
        key = f"calls {with_tools}"
        if key not in self._support:
            shown = [(form, self._shows_call(form, with_tools)) for form in _CALL_FORMS]
            found = [(form.as_text, len(text), form) for form, text in shown if text]
            # Absent content that is written as more than nothing is written as an answer of its own.
            self._support[key] = min(found, key=lambda item: item[:2])[2] if found else None
        return self._support[key]

    def _shows_call(self, form: _CallForm, with_tools: bool) -> str:
        """The text of a call given in this form; empty where the template does not show it."""
        function = {"name": _PROBE_NAME, "arguments": {_PROBE_VALUE: 1}}
        call = {"type": "function", "id": "zq0000001", "function": function}
        turns = [_turn("user", _PROBE_QUESTION), form.given({**_turn("assistant", ""), "tool_calls": [call]})]
        try:
            text = self.render(turns, [_PROBE_TOOL] if with_tools else None)
        except RowProblem:
            return ""
        shown = text.rpartition(_PROBE_QUESTION)[2]  # tools may stand before the question
        written = f'"{_PROBE_VALUE}"' in shown or (
            not form.as_text and _PROBE_VALUE in shown and f"'{_PROBE_VALUE}'" not in shown
        )
        return shown if written and _PROBE_NAME in shown and "None" not in shown else ""

    def _shows_tools(self) -> bool:
        if "tools" not in self._support:
            try:
                text = self.render([_turn("user", "a")], [_PROBE_TOOL])
            except RowProblem:
                text = ""
            self._support["tools"] = _PROBE_NAME in text
        return self._support["tools"]

    def _takes_system(self) -> bool:
        if "system" not in self._support:
            talk = [_turn("system", _PROBE_VALUE), _turn("user", "a")]
            self._support["system"] = _PROBE_VALUE in str(self._attempt(talk))
        return self._support["system"]


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _in_parts(message: Message) -> Message:
    content = message["content"]
    return message if content is None else {**message, "content": [{"type": "text", "text": content}]}


def _with_text_arguments(function: dict[str, Any]) -> dict[str, Any]:
    import json

    return {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}


def _frozen_clock(day: datetime.date) -> str:
    """A macro `strftime_now` that writes one day."""
    moment = datetime.datetime.combine(day, datetime.time())
    values = {f"%{directive}": moment.strftime(f"%{directive}") for directive in _DIRECTIVES}
    values |= {f"%-{directive}": moment.strftime(f"%{directive}").lstrip("0") or "0" for directive in "dmHIMS"}
    replaced = "".join(f" | replace({name!r}, {value!r})" for name, value in values.items())
    # The empty expression keeps a line break at the template's beginning, which a block's end would swallow.
    return "{%- macro strftime_now(format) -%}{{ format" + replaced + " }}{%- endmacro -%}{{ '' }}"
