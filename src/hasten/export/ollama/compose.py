"""The Go template of what a chat template writes around texts.

No trim markers are used, so that every character outside the braces is one of the prompt.
"""

from __future__ import annotations

import re
from dataclasses import replace

from hasten.export.ollama.chat_parts import ChatParts
from hasten.export.ollama.thought_parts import ThoughtParts
from hasten.export.ollama.tool_parts import ToolParts

_SPECIAL = re.compile(r'\{(?=\{|\Z)|"{3,}')
_CONTENT, _GIVEN = "{{ .Content }}", "{{ $given = true }}"
_QUESTION = (
    "{{ $question := -1 }}"
    '{{ range $i, $m := .Messages }}{{ if eq $m.Role "user" }}{{ $question = $i }}{{ end }}{{ end }}'
)
"""The place of the last question."""


def written(parts: ChatParts, tools: ToolParts | None = None, thoughts: ThoughtParts | None = None) -> str:
    """The Go template of these parts.

    Ollama reads two things in a template besides running it: the first text under `if .ToolCalls` is what it takes for
    the mark of a call in an answer, and the texts around `.Thinking` are those that it cuts the thinking out by. So a
    condition on calls in front of that one goes by their number, and nothing else stands under these two.
    """
    flag, head, system, user = _beginning(parts)
    answer, closed, ask = literal(parts.assistant[0]), literal(parts.assistant[1]), literal(parts.ask)
    content, results, start = f"{_CONTENT}{_if('not $last', closed)}", "", ""
    if tools is not None:
        flag += "{{ $results := false }}" + ("{{ $headed := false }}" if tools.headed else "")
        close = literal(tools.close)
        start = _if('and $results (ne .Role "tool")', f"{close}{{{{ $results = false }}}}")
        head = _if("and $.Tools (eq $i 0)", _front(tools), head)
        system = _if("or (not $.Tools) (gt $i 0)", system)
        user = _if("$headed", "{{ $headed = false }}", user) if tools.headed else user
        content = _calls(tools, parts)
        results = _results(tools)
    if thoughts is not None:
        late = "" if thoughts.earlier else " (gt $i $question)"
        flag += "" if thoughts.earlier else _QUESTION
        thinking = f"{literal(thoughts.open)}{{{{ .Thinking }}}}{literal(thoughts.close)}"
        content = _if(f"and .Thinking{late}", thinking) + content
        ask += _if("and $.IsThinkSet $.Think", literal(thoughts.on)) if thoughts.on else ""
        ask += _if("and $.IsThinkSet (not $.Think)", literal(thoughts.off)) if thoughts.off else ""
    return "".join(
        (
            flag,
            "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}",
            start,
            head,
            _if('eq .Role "system"', system, end=False),
            '{{ else if eq .Role "user" }}',
            f"{user}{_CONTENT}{literal(parts.user[1])}",
            '{{ else if eq .Role "assistant" }}',
            f"{answer}{content}",
            results,
            "{{ end }}",
            _if('and $last (ne .Role "assistant")', ask),
            "{{ end }}",
        )
    )


def _front(tools: ToolParts) -> str:
    """What a conversation with tools begins with."""
    one = "{{ json . }}" if tools.whole else "{{ json .Function }}"
    each = _if("gt $n 0", literal(tools.between_tools)) + one
    listed = f"{{{{ range $n, $_ := $.Tools }}}}{each}{{{{ end }}}}"
    without, given, empty = (
        "".join(literal(text) if kind == "text" else listed if kind == "tools" else _CONTENT for kind, text in front)
        for front in tools.fronts
    )
    given = given if given.replace(_CONTENT, "") == empty else _if(".Content", given, empty)
    flag = "{{ $headed = true }}" if tools.headed else ""
    return _if('eq .Role "system"', given, without) + flag


def _calls(tools: ToolParts, parts: ChatParts) -> str:
    """The text of an answer, its calls, and what ends it."""
    called = (
        f"{_if('eq $n 0', literal(tools.first), literal(tools.between))}{{{{ .Function.Name }}}}{literal(tools.name)}"
        "{{ json .Function.Arguments }}"
    )
    end = parts.assistant[1]
    last = literal(tools.last.removesuffix(end))
    calls = f"{{{{ range $n, $_ := .ToolCalls }}}}{called}{{{{ end }}}}{last}"
    if tools.lead is None:
        content = _if("eq (len .ToolCalls) 0", _CONTENT)
    else:
        content = _CONTENT + _if("and .Content (gt (len .ToolCalls) 0)", literal(tools.lead))
    return f"{content}{_if('.ToolCalls', calls)}{_if('not $last', literal(end))}"


def _results(tools: ToolParts) -> str:
    """The branch of a call's result."""
    begin = _if("$results", literal(tools.next), f"{literal(tools.open)}{{{{ $results = true }}}}")
    content = "{{ json .Content }}" if tools.quoted else _CONTENT
    return f'{{{{ else if eq .Role "tool" }}}}{begin}{content}{_if("$last", literal(tools.close))}'


def _beginning(parts: ChatParts) -> tuple[str, str, str, str]:
    """What remembers that there is a system text; what is written at the start, for it, and in front of a question."""
    lead = parts.head if parts.before.startswith(parts.head) and parts.empty.startswith(parts.head) else ""
    if parts.system in ("own", "first") and lead:
        # What begins every conversation is written for every first turn, and a later system text goes without it.
        rest = replace(parts, head="", before=parts.before[len(lead) :], empty=parts.empty[len(lead) :])
        flag, _, system, user = _beginning(rest)
        return flag, _if("eq $i 0", literal(lead)), system, user
    before, after, empty = literal(parts.before), literal(parts.after), literal(parts.empty)
    always = parts.empty == parts.before + parts.after
    head, user = literal(parts.head), literal(parts.user[0])
    if parts.system in ("none", "last"):
        head = _if("eq $i 0", head)
    else:
        head = _if('and (eq $i 0) (ne .Role "system")', head)
    match parts.system:
        case "none":
            return "", head, "", user
        case "own":
            text = f"{before}{_CONTENT}{after}"
            return "", head, text if always else _if(".Content", text, empty), user
        case "first":
            # The question writes what stands behind the system text, since it is less where the question is empty.
            behind = after if parts.alone == parts.after else _if(".Content", after, literal(parts.alone))
            user = _if("$given", f"{{{{ $given = false }}}}{behind}", user)
            text = f"{before}{_CONTENT}{_GIVEN}"
            if not always:
                header = parts.user[0]
                text = _if(".Content", text, literal(parts.empty.removesuffix(header) if header else parts.empty))
            return "{{ $given := false }}", head, text, user
        case "last":
            text = f"{before}{{{{ $.System }}}}{after}"
            text = text if always else _if("$.System", text, empty)
            return "{{ $given := false }}", head, _GIVEN, user + _if("and $last $given", text)


def _if(condition: str, text: str, otherwise: str = "", *, end: bool = True) -> str:
    """A text under a condition; nothing where there is no text."""
    if not text and not otherwise and end:
        return ""
    rest = f"{{{{ else }}}}{otherwise}" if otherwise else ""
    return f"{{{{ if {condition} }}}}{text}{rest}{'{{ end }}' if end else ''}"


def literal(text: str) -> str:
    """Text as a Go template writes it: what would begin an action or not survive in a Modelfile becomes a string."""

    def one(match: re.Match[str]) -> str:
        escaped = "".join(f"\\{character}" if character == '"' else _escaped(character) for character in match[0])
        return f'{{{{ "{escaped}" }}}}'

    special = [re.escape(character) for character in sorted(set(text)) if _unprintable(character)]
    pattern = re.compile("|".join([_SPECIAL.pattern, *special]))
    return pattern.sub(one, text)


def _unprintable(character: str) -> bool:
    return not character.isprintable() and character not in "\n\t"


def _escaped(character: str) -> str:
    code = ord(character)
    if code > 0xFFFF:
        return f"\\U{code:08x}"
    return f"\\u{code:04x}" if _unprintable(character) else character
