"""`train_on_responses_only`: labels on the answers, everything else is only read.

    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello<|im_end|>\\n
                                                              ^^^^^^^^^^^^^^^ learnt, its end of turn included

The markers are searched for in the row's text and matched to tokens by character offsets. Tokenizing a marker alone
would not do: sub-words merge across its borders, so its ids need not occur in a row that plainly contains it. A token
that holds the end of a marker and the beginning of an answer is learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hasten.compat.markers import Markers, find_markers
from hasten.compat.notes import say
from hasten.compat.offsets import Span, text_and_offsets
from hasten.data.packing import IGNORED
from hasten.errors import ConfigError, DataError

_SHOWN = 400
Batch = dict[str, list[Any]]


def train_on_responses_only(
    trainer: Any,
    instruction_part: str | None = None,
    response_part: str | None = None,
    force_match: bool = True,
    tokenizer: Any = None,
    return_function: bool = False,
    num_proc: int | None = None,
    last_response_only: bool = False,
) -> Any:
    """Learn the answers only, in the trainer's training and evaluation rows.

    Args:
        trainer: trl's `SFTTrainer` or hasten's; its datasets are tokenized already.
        instruction_part: the text before a question; None finds it in the chat template.
        response_part: the text before an answer; None finds it in the chat template.
        force_match: without effect: a marker is found wherever the text has it.
        tokenizer: None is the trainer's.
        return_function: return the function for ``dataset.map(batched=True)`` and leave the trainer as it is.
        num_proc: worker processes.
        last_response_only: learn only the last answer of each row.

    Returns:
        The trainer, or the function.

    Raises:
        ConfigError: markers that are missing and cannot be found, or rows that are not tokenized.
        DataError: no row has an answer; the message shows the first row.
    """
    tokenizer = tokenizer if tokenizer is not None else getattr(trainer, "processing_class", None)
    if tokenizer is None:
        raise ConfigError("tokenizer", "None", "The rows' text is read with it.", "Pass tokenizer=.")
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    markers = find_markers(tokenizer, instruction_part, response_part)
    label = labeller(tokenizer, markers, last_only=last_response_only)
    if return_function:
        return label
    trainer.train_dataset = _labelled(trainer.train_dataset, "train", label, markers, tokenizer, num_proc)
    evaluation = trainer.eval_dataset
    if isinstance(evaluation, dict):
        trainer.eval_dataset = {
            name: _labelled(dataset, name, label, markers, tokenizer, num_proc) for name, dataset in evaluation.items()
        }
    elif evaluation is not None:
        trainer.eval_dataset = _labelled(evaluation, "eval", label, markers, tokenizer, num_proc)
    _keep_labels(trainer, tokenizer)
    return trainer


def labeller(tokenizer: Any, markers: Markers, *, last_only: bool = False) -> Callable[[Batch], Batch]:
    """The function that makes ``labels`` for a batch of tokenized rows.

    Args:
        tokenizer: the one that made the rows.
        markers: what to search for.
        last_only: only the last answer.
    """

    def label(batch: Batch) -> Batch:
        rows = batch["input_ids"]
        lengths = batch.get("seq_lengths") or [None] * len(rows)
        return {"labels": [_row(list(ids), parts) for ids, parts in zip(rows, lengths, strict=True)]}

    def _row(ids: list[int], parts: Sequence[int] | None) -> list[int]:
        labels: list[int] = []
        for length in parts or [len(ids)]:  # a packed row is several documents
            labels += _labels(ids[len(labels) : len(labels) + length])
        return labels

    def _labels(ids: list[int]) -> list[int]:
        text, offsets = text_and_offsets(tokenizer, ids)
        spans = answer_spans(text, markers)
        if last_only:
            spans = spans[-1:]
        learnt = [any(begin < stop and start < end for start, stop in spans) for begin, end in offsets]
        return [token if learn else IGNORED for token, learn in zip(ids, learnt, strict=True)]

    return label


def answer_spans(text: str, markers: Markers) -> list[Span]:
    """The character spans of the answers in a text, ends of turn included.

    A marker that does not occur as it was given is searched for without the white space around it.
    """
    response, instruction = _as_it_occurs(text, markers.response), _as_it_occurs(text, markers.instruction)
    spans: list[Span] = []
    at = text.find(response)
    while at != -1:
        start = at + len(response)
        after = text.find(response, start)
        borders = [found for found in (text.find(instruction, start), after) if found != -1]
        stop = min(borders, default=len(text))
        spans.append((start, _end(text, start, stop, markers.ends)))
        at = after
    return [(start, stop) for start, stop in spans if start < stop]


def _as_it_occurs(text: str, marker: str) -> str:
    return marker if marker in text else marker.strip()


def _end(text: str, start: int, stop: int, ends: Sequence[str]) -> int:
    found = [place + len(end) for end in ends if (place := text.find(end, start, stop)) != -1]
    return min(found, default=stop)


def _labelled(
    dataset: Any, name: str, label: Callable[[Batch], Batch], markers: Markers, tokenizer: Any, num_proc: int | None
) -> Any:
    streaming = not hasattr(dataset, "num_rows")
    columns = dataset.column_names
    if columns is not None and "input_ids" not in columns:
        raise ConfigError(
            f"the {name} dataset",
            f"columns {', '.join(columns)}",
            "Its rows must be tokenized (input_ids).",
            "Let SFTTrainer prepare them: leave skip_prepare_dataset out.",
        )
    workers = {} if streaming else {"num_proc": num_proc}
    made = dataset.map(label, batched=True, **workers)
    kept = made.filter(_has_labels, batched=True, **workers)
    if streaming:
        return kept
    dropped = made.num_rows - kept.num_rows
    if kept.num_rows == 0:
        raise _nothing(dataset, name, markers, tokenizer)
    if dropped:
        say(f"{dropped} of {made.num_rows} {name} rows have no answer between the markers and are left out")
    return kept


def _has_labels(batch: Batch) -> list[bool]:
    return [any(label != IGNORED for label in labels) for labels in batch["labels"]]


def _nothing(dataset: Any, name: str, markers: Markers, tokenizer: Any) -> DataError:
    if dataset.num_rows == 0:
        return DataError(f"the {name} dataset", "no rows", "At least one is needed.", "Check what prepared it.")
    text, _ = text_and_offsets(tokenizer, dataset[0]["input_ids"])
    cut = text[:_SHOWN] + ("..." if len(text) > _SHOWN else "")
    return DataError(
        f"the {name} dataset",
        f"none of {dataset.num_rows} rows has an answer after {markers.response!r}; row 0 is {cut!r}",
        "At least one row must have something to learn.",
        "Take instruction_part and response_part from that text, raise max_seq_length if the answer was cut, or leave "
        "both parts out to use the chat template's.",
    )


def _keep_labels(trainer: Any, tokenizer: Any) -> None:
    """transformers' language-modelling collator makes labels of its own; one that keeps ours takes its place."""
    from transformers import DataCollatorForLanguageModeling, DataCollatorForSeq2Seq

    if isinstance(trainer.data_collator, DataCollatorForLanguageModeling):
        say("DataCollatorForLanguageModeling overwrites labels; DataCollatorForSeq2Seq is used instead")
        trainer.data_collator = DataCollatorForSeq2Seq(tokenizer=tokenizer)
