"""The Go template of what a chat template writes around texts.

No trim markers are used, so that every character outside the braces is one of the prompt.
"""

from __future__ import annotations

import re
from dataclasses import replace

from hasten.export.ollama.chat_parts import ChatParts

_SPECIAL = re.compile(r'\{(?=\{|\Z)|"{3,}')
_CONTENT, _GIVEN = "{{ .Content }}", "{{ $given = true }}"


def written(parts: ChatParts) -> str:
    """The Go template of these parts."""
    flag, head, system, user = _beginning(parts)
    answer, closed, ask = literal(parts.assistant[0]), literal(parts.assistant[1]), literal(parts.ask)
    return "".join(
        (
            flag,
            "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}",
            head,
            _if('eq .Role "system"', system, end=False),
            '{{ else if eq .Role "user" }}',
            f"{user}{_CONTENT}{literal(parts.user[1])}",
            '{{ else if eq .Role "assistant" }}',
            f"{answer}{_CONTENT}{_if('not $last', closed)}",
            "{{ end }}",
            _if('and $last (ne .Role "assistant")', ask),
            "{{ end }}",
        )
    )


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
