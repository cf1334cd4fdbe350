"""`standardize_data_formats`: conversations of any of the usual shapes as role and content."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hasten.compat.notes import say_once
from hasten.errors import ConfigError, DataError

COLUMN = "conversations"
_COLUMNS = (COLUMN, "messages", "conversation")
_ROLE_KEYS, _CONTENT_KEYS = ("role", "from"), ("content", "value")


def standardize_data_formats(
    dataset: Any,
    tokenizer: Any = None,
    aliases_for_system: Sequence[str] = ["system"],  # noqa: B006  # the documented default; it is only read
    aliases_for_user: Sequence[str] = ["user", "human", "input"],  # noqa: B006
    aliases_for_assistant: Sequence[str] = ["gpt", "assistant", "output"],  # noqa: B006
    batch_size: int = 1000,
    num_proc: int | None = None,
) -> Any:
    """Turns as ``{"role": "system"|"user"|"assistant", "content": ...}`` in a column ``conversations``.

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
        A new dataset; other columns are kept.

    Raises:
        ConfigError: no such column, or an alias for two roles.
        DataError: an unknown role or a turn without one, with its row.
    """
    if hasattr(dataset, "keys") and not hasattr(dataset, "features"):  # a DatasetDict
        made = {
            name: standardize_data_formats(
                part, tokenizer, aliases_for_system, aliases_for_user, aliases_for_assistant, batch_size, num_proc
            )
            for name, part in dataset.items()
        }
        return type(dataset)(made)
    column = next((name for name in _COLUMNS if name in dataset.column_names), None)
    if column is None:
        raise ConfigError(
            "dataset",
            f"columns {', '.join(dataset.column_names)}",
            f"One of {', '.join(_COLUMNS)} must hold the conversations.",
            "Rename the column with dataset.rename_column.",
        )
    roles = _roles(aliases_for_system, aliases_for_user, aliases_for_assistant)

    def standardized(batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        pairs = zip(batch[column], numbers, strict=True)
        return {COLUMN: [[_turn(turn, roles, number + 1) for turn in turns] for turns, number in pairs]}

    # The old column goes first, so that the new turns need not fit its types.
    return dataset.map(
        standardized,
        with_indices=True,
        batched=True,
        batch_size=batch_size,
        num_proc=num_proc,
        remove_columns=[column],
        desc="Standardizing conversations",
    )


standardize_sharegpt = standardize_data_formats


def _roles(system: Sequence[str], user: Sequence[str], assistant: Sequence[str]) -> dict[str, str]:
    roles: dict[str, str] = {}
    for role, aliases in (("system", system), ("user", user), ("assistant", assistant)):
        for alias in aliases:
            if roles.setdefault(alias, role) != role:
                rule = "An alias names one role."
                raise ConfigError(
                    f"aliases_for_{role}", f"'{alias}'", rule, f"Take it out of aliases_for_{roles[alias]}."
                )
    return roles


def _turn(turn: Any, roles: dict[str, str], row: int) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise DataError(f"row {row}", f"a turn that is a {type(turn).__name__}", "A turn is an object.", "Correct it.")
    given = {key: value for key, value in turn.items() if value is not None}
    name = next((given[key] for key in _ROLE_KEYS if key in given), None)
    if name not in roles:
        known = ", ".join(sorted(roles))
        remedy = "Add it to aliases_for_user or aliases_for_assistant, or leave such rows out."
        raise DataError(f"row {row}", f"role {name!r}", f"Known roles are {known}.", remedy)
    dropped = sorted(set(given) - {*_ROLE_KEYS, *_CONTENT_KEYS})
    if dropped:
        say_once(f"turns have keys that chat templates do not read here; left out: {', '.join(dropped)}")
    content = next((given[key] for key in _CONTENT_KEYS if key in given), None)
    if content is None:
        raise DataError(
            f"row {row}", f"a turn of {roles[name]} without content", "Every turn has text.", "Leave it out."
        )
    return {"role": roles[name], "content": content}
