"""`to_sharegpt`: a table becomes conversations, a question from several columns and an answer from one."""

from __future__ import annotations

import random
from typing import Any

from hasten.compat.merged_prompt import is_empty, parse_prompt
from hasten.compat.notes import say_once
from hasten.compat.splits import per_split
from hasten.compat.standardize import COLUMN
from hasten.errors import ConfigError, DataError, did_you_mean

_ROWS_AT_A_TIME = 1000


def to_sharegpt(
    dataset: Any,
    merged_prompt: str = "",
    merged_column_name: str = "instruction",
    output_column_name: str = "output",
    remove_unused_columns: bool = True,
    conversation_extension: int = 1,
    random_state: int = 3407,
) -> Any:
    """Rows of questions and answers as a column ``conversations`` of ``{"from": "human"|"gpt", "value": text}``.

    Args:
        dataset: a `datasets.Dataset` or `DatasetDict`.
        merged_prompt: the question, with ``{column}`` for a column's value; what stands in ``[[ ]]`` is left out where
            its column is empty. Empty: the column `merged_column_name` is the question.
        merged_column_name: the column of the question; with `merged_prompt`, and with other columns kept, it holds the
            merged text.
        output_column_name: the column of the answer.
        remove_unused_columns: keep nothing but the conversations.
        conversation_extension: exchanges in a conversation: each row is followed by that many less one other rows,
            drawn at random, none twice.
        random_state: seed of that draw; the same one gives the same conversations.

    Returns:
        A new dataset with as many rows.

    Raises:
        ConfigError: an unknown column, a prompt whose brackets or braces do not match, more exchanges than rows.
        DataError: a row without a question or an answer.
    """
    if type(conversation_extension) is not int or conversation_extension < 1:
        value = repr(conversation_extension)
        raise ConfigError("conversation_extension", value, "It is a whole number, 1 or more.", "Use 1.")

    def converted(part: Any) -> Any:
        if not merged_prompt and COLUMN in part.column_names and merged_column_name not in part.column_names:
            say_once(f"to_sharegpt: the dataset has a column '{COLUMN}' already and stays as it is")
            return part
        made = _exchanges(part, merged_prompt, merged_column_name, output_column_name, remove_unused_columns)
        return _extended(made, conversation_extension, random_state)

    return per_split(dataset, converted)


def _exchanges(dataset: Any, prompt: str, question: str, answer: str, remove: bool) -> Any:
    """Every row as a conversation of one question and one answer."""
    columns = dataset.column_names
    parts = parse_prompt(prompt, columns)
    needed = (
        {"output_column_name": answer} if prompt else {"merged_column_name": question, "output_column_name": answer}
    )
    for argument, name in needed.items():
        if name not in columns:
            rule = f"The dataset's columns are {', '.join(columns)}."
            raise ConfigError(argument, f"'{name}'", rule, did_you_mean(name, columns, "Name one of them."))

    def exchange(row: dict[str, Any], index: int) -> dict[str, Any]:
        asked = "".join(part.fill(row, index + 1) for part in parts) if prompt else row[question]
        for name, value in (("question", asked), (f"'{answer}'", row[answer])):
            if is_empty(value):
                rule = "Every row has a question and an answer."
                raise DataError(f"row {index + 1}", f"empty {name}", rule, "Leave it out with dataset.filter.")
        turns = [{"from": "human", "value": str(asked)}, {"from": "gpt", "value": str(row[answer])}]
        return {COLUMN: turns, **({question: asked} if prompt and not remove else {})}

    replaced = [name for name in (COLUMN, *([question] if prompt else [])) if name in columns]
    gone = columns if remove else replaced
    return dataset.map(exchange, with_indices=True, remove_columns=gone, desc="Making conversations")


def _extended(dataset: Any, exchanges: int, seed: int) -> Any:
    """Each conversation with those of other rows behind it; other columns are the first row's."""
    if exchanges == 1:
        return dataset
    if exchanges > len(dataset):
        rule = "A conversation has no row twice."
        remedy = f"Use {max(1, len(dataset))} at most."
        raise ConfigError("conversation_extension", f"{exchanges}, but {len(dataset)} rows", rule, remedy)
    generator = random.Random(seed)
    order: list[int] = []
    for first in range(len(dataset)):
        others = generator.sample(range(len(dataset) - 1), exchanges - 1)
        order += [first, *(other + (other >= first) for other in others)]

    def joined(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        made = {name: values[::exchanges] for name, values in batch.items()}
        starts = range(0, len(batch[COLUMN]), exchanges)
        made[COLUMN] = [sum(batch[COLUMN][start : start + exchanges], []) for start in starts]
        return made

    rows = max(1, _ROWS_AT_A_TIME // exchanges) * exchanges
    return dataset.select(order).map(joined, batched=True, batch_size=rows, desc="Extending conversations")
