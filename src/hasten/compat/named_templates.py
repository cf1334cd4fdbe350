"""The named chat templates as scripts know them: a mapping from name to text and end of turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hasten.data.named_templates import ALIASES, STOPS
from hasten.data.named_templates import named_template as named_template


class ChatTemplates(Mapping[str, tuple[str, str]]):
    """All named templates: name -> (text, token that ends a turn); the texts are read when they are asked for."""

    def __getitem__(self, name: str) -> tuple[str, str]:
        if name not in STOPS and name not in ALIASES:
            raise KeyError(name)
        return named_template(name)

    def __iter__(self) -> Iterator[str]:
        return iter((*STOPS, *ALIASES))

    def __len__(self) -> int:
        return len(STOPS) + len(ALIASES)


CHAT_TEMPLATES = ChatTemplates()
