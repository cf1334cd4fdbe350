"""`standardize_data_formats`: conversations of any of the usual shapes as role and content.

What chat templates read besides those two (tool calls, their results' ids, names, thinking) stays in the turn. The
types of the new column are taken from the old one: guessed from the first rows they would not fit a tool call that
comes later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hasten.compat.notes import say_once
from hasten.compat.splits import per_split
from hasten.errors import ConfigError, DataError

COLUMN = "conversations"
COLUMNS = (COLUMN, "messages", "conversation")
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value")
_KEPT = ("tool_calls", "tool_call_id", "tools", "name", "reasoning_content")


def standardize_data_formats(
    dataset: Any,
    tokenizer: Any = None,
    aliases_for_system: Sequence[str] = ["system"],  # noqa: B006  # the documented default; it is only read
    aliases_for_user: Sequence[str] = ["user", "human", "input"],  # noqa: B006
    aliases_for_assistant: Sequence[str] = ["gpt", "assistant", "output"],  # noqa: B006
    batch_size: int = 1000,
    num_proc: int | None = None,
) -> Any:
    """Turns as ``{"role": "system"|"user"|"assistant"|"tool", "content": ...}`` in a column ``conversations``.

    Args:
        dataset: a `datasets.Dataset` or `DatasetDict` with a column ``conversations``, ``messages`` or
            ``conversation`` whose turns have ``role`` and ``content`` or ``from`` and ``value``.
        tokenizer: without effect.
        aliases_for_system: names of the system role.
        aliases_for_user: names of the user role.
        aliases_for_assistant: names of the assistant role.
        batch_size: rows at a time.
        num_proc: worker processes.

    Returns:
        A new dataset; other columns are kept, and so are the turns' ``tool_calls``, ``tool_call_id``, ``tools``,
        ``name`` and ``reasoning_content``.

    Raises:
        ConfigError: no such column, or an alias for two roles.
        DataError: an unknown role or a turn without one, with its row.
    """
    roles = _roles(aliases_for_system, aliases_for_user, aliases_for_assistant)
    return per_split(dataset, lambda part: _standardized(part, roles, batch_size, num_proc))


standardize_sharegpt = standardize_data_formats


def conversation_column(dataset: Any) -> str:
    """The column that holds the conversations.

    Raises:
        ConfigError: there is none.
    """
    column = next((name for name in COLUMNS if name in dataset.column_names), None)
    if column is None:
        raise ConfigError(
            "dataset",
            f"columns {', '.join(dataset.column_names)}",
            f"One of {', '.join(COLUMNS)} must hold the conversations.",
            "Rename the column with dataset.rename_column.",
        )
    return column


def turn_types(dataset: Any, column: str) -> dict[str, Any]:
    """The types of a turn's keys; those that hold nothing anywhere are left out."""
    turns = getattr(dataset.features[column], "feature", None)
    if not isinstance(turns, dict):
        raise ConfigError(
            "dataset",
            f"column '{column}' of {dataset.features[column]}",
            "A conversation is a list of turns, each an object of role and content, or of from and value.",
            "Make it so with dataset.map.",
        )
    return {key: kind for key, kind in turns.items() if getattr(kind, "dtype", None) != "null"}


def _standardized(dataset: Any, roles: dict[str, str], batch_size: int, num_proc: int | None) -> Any:
    from datasets import Features, Value

    column = conversation_column(dataset)
    types = turn_types(dataset, column)
    kept = [key for key in _KEPT if key in types]
    content = next((types[key] for key in _CONTENT_KEYS if key in types), Value("string"))

    def batch_of_turns(batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        pairs = zip(batch[column], numbers, strict=True)
        return {COLUMN: [[_turn(turn, roles, kept, number + 1) for turn in turns or []] for turns, number in pairs]}

    others = {name: kind for name, kind in dataset.features.items() if name not in (column, COLUMN)}
    turn = {"role": Value("string"), "content": content, **{key: types[key] for key in kept}}
    return dataset.map(
        batch_of_turns,
        with_indices=True,
        batched=True,
        batch_size=batch_size,
        num_proc=num_proc,
        remove_columns=[column],
        features=Features({**others, COLUMN: [turn]}),
        desc="Standardizing conversations",
    )


def _roles(system: Sequence[str], user: Sequence[str], assistant: Sequence[str]) -> dict[str, str]:
    roles: dict[str, str] = {}
    for role, aliases in (("system", system), ("user", user), ("assistant", assistant)):
        for alias in aliases:
            if roles.setdefault(alias, role) != role:
                rule = "An alias names one role."
                raise ConfigError(
                    f"aliases_for_{role}", f"'{alias}'", rule, f"Take it out of aliases_for_{roles[alias]}."
                )
    return {"tool": "tool", **roles}


def _turn(turn: Any, roles: dict[str, str], kept: Sequence[str], row: int) -> dict[str, Any]:
    given = {key: value for key, value in turn.items() if value is not None} if turn else {}
    name = next((given[key] for key in _ROLE_KEYS if key in given), None)
    if name not in roles:
        known = ", ".join(sorted(roles))
        remedy = "Add it to aliases_for_user or aliases_for_assistant, or leave such rows out."
        raise DataError(f"row {row}", f"role {name!r}", f"Known roles are {known}.", remedy)
    dropped = sorted(set(given) - {*_ROLE_KEYS, *_CONTENT_KEYS, *kept})
    if dropped:
        say_once(f"turns have keys that chat templates do not read; left out: {', '.join(dropped)}")
    content = next((given[key] for key in _CONTENT_KEYS if key in given), None)
    if content is None and not given.get("tool_calls"):
        raise DataError(
            f"row {row}", f"a turn of {roles[name]} without content", "Every turn has text.", "Leave it out."
        )
    return {"role": roles[name], "content": content, **{key: given.get(key) for key in kept}}
