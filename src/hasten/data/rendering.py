"""The model's own chat template: rendered in transformers' sandbox, never changed.

Some templates print today's date. Rows are rendered with one day, named in the report: a macro of the name that the
sandbox offers is set in front of the template, so nothing in the template or in transformers is touched.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from typing import Any

from hasten.data.conversation import Conversation, Message, RowProblem

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_DIRECTIVES = "aAbBdmyYjHMSpfIUWwx"
_PROBE_NAME, _PROBE_VALUE = "zqcall", "zqvalue"


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

        calls = has_calls and self._call_form() is None
        tools = bool(conversation.tools) and not self._shows_tools()
        if calls or tools:
            conversation = without_tool_support(conversation, calls=calls, tools=tools)
        if has_calls and self._call_form() is str:
            messages = [_with_text_arguments(message) for message in conversation.messages]
            conversation = Conversation(messages, conversation.tools, conversation.learn)
        return conversation, calls, tools

    def _attempt(self, messages: Sequence[Message]) -> str | RowProblem:
        try:
            return self.render(messages)
        except RowProblem as problem:
            return problem

    def _rendered(
        self, conversations: Sequence[Sequence[Message]], tools: Any, ask: bool, markers: bool = False
    ) -> tuple[list[str], list[Any]]:
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            made: Any = render_jinja_template(
                conversations=[list(messages) for messages in conversations],  # type: ignore[arg-type]
                tools=tools,
                chat_template=self.template(tools),
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

    def _call_form(self) -> type | None:
        """How the template takes a call's arguments: as a mapping, as text, or not at all."""
        if "calls" not in self._support:
            self._support["calls"] = next((kind for kind in (dict, str) if self._shows_call(kind)), None)
        return self._support["calls"]

    def _shows_call(self, kind: type) -> bool:
        arguments = {_PROBE_VALUE: 1} if kind is dict else f'{{"{_PROBE_VALUE}": 1}}'
        function = {"name": _PROBE_NAME, "arguments": arguments}
        call = {"type": "function", "id": "zqcall001", "function": function}
        turns = [_turn("user", "a"), {**_turn("assistant", ""), "tool_calls": [call]}]
        text = self._attempt(turns)
        if isinstance(text, RowProblem) or _PROBE_NAME not in text:
            return False
        shown = text.partition(_PROBE_NAME)[2]
        return f'"{_PROBE_VALUE}"' in shown or (
            kind is dict and _PROBE_VALUE in shown and f"'{_PROBE_VALUE}'" not in shown
        )

    def _shows_tools(self) -> bool:
        if "tools" not in self._support:
            schema = {"name": _PROBE_NAME, "description": "a", "parameters": {"type": "object", "properties": {}}}
            try:
                text = self.render([_turn("user", "a")], [{"type": "function", "function": schema}])
            except RowProblem:
                text = ""
            self._support["tools"] = _PROBE_NAME in text
        return self._support["tools"]


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _with_text_arguments(message: Message) -> Message:
    import json

    if "tool_calls" not in message:
        return message
    calls = [
        {
            **call,
            "function": {
                **call["function"],
                "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
            },
        }
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _frozen_clock(day: datetime.date) -> str:
    """A macro `strftime_now` that writes one day."""
    moment = datetime.datetime.combine(day, datetime.time())
    values = {f"%{directive}": moment.strftime(f"%{directive}") for directive in _DIRECTIVES}
    values |= {f"%-{directive}": moment.strftime(f"%{directive}").lstrip("0") or "0" for directive in "dmHIMS"}
    replaced = "".join(f" | replace({name!r}, {value!r})" for name, value in values.items())
    # The empty expression keeps a line break at the template's beginning, which a block's end would swallow.
    return "{%- macro strftime_now(format) -%}{{ format" + replaced + " }}{%- endmacro -%}{{ '' }}"
