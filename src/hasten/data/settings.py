"""The settings of the data path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hasten.schema import option


@dataclass(kw_only=True)
class DataSettings:
    """Which rows are trained on, and on which of their tokens."""

    source: str | list[str] = option(
        "python-docs",
        "a .json, .jsonl, .csv, .tsv, .parquet or .txt file, a folder of texts, a hub data set, or 'python-docs': "
        "questions about Python's own library; several are mixed",
    )
    weights: list[float] = option([], "shares of several sources in a mix, in their order; none: every row of each")
    subset: str = option("", "subset (configuration) of a hub data set")
    split: str = option("train", "split of a hub data set")
    streaming: bool = option(False, "read a hub data set as it comes instead of storing all of it; needs `limit`")
    format: Literal[
        "auto",
        "messages",
        "conversations",
        "alpaca",
        "prompt-completion",
        "question-answer",
        "text",
        "preference",
        "labelled",
    ] = option("auto", "the rows' format; auto finds it from their columns and says so")
    columns: list[str] = option([], "columns that have another name, as theirs=ours: query=question")
    heldout: int = option(24, "rows kept out of training to measure the loss on", low=0)
    limit: int = option(0, "use at most this many rows; 0 is all", low=0)
    max_length: int = option(1024, "longest row in tokens", low=8)
    too_long: Literal["cut", "drop", "split"] = option(
        "cut", "longer rows: cut at the end, drop, or split into documents of that length"
    )
    pack_length: int = option(
        0,
        "lay rows end to end in training rows of this many tokens, which batch_size then counts; 0: each row alone",
        low=0,
    )
    loss_on: Literal["assistant", "last", "all"] = option(
        "assistant", "which tokens are learnt: every assistant turn, the last one, or all tokens"
    )
    template: str = option(
        "", "chat template: a name such as chatml, a .jinja file, or Jinja text; empty: the model's own"
    )
    control_tokens: Literal["text", "control"] = option(
        "text", "control tokens that rows spell out: 'text' keeps them text, 'control' lets them act"
    )
    merge_turns: bool = option(False, "join neighbouring turns of one role, for templates that insist on alternation")
    fold_system: bool = option(False, "put the system turn in front of the first user turn, for templates without one")
    inserted_text: Literal["keep", "refuse"] = option(
        "keep", "text that the template writes and no row has (a default system turn): keep it, or refuse to train"
    )
    date: str = option("", "the day (YYYY-MM-DD) that a template prints; empty: the day of preparation")
    cache: bool = option(True, "keep prepared rows on disk, so that the next run with the same ones starts at once")
    seed: int = option(3407, "seed of the split into training and held-out rows", low=0)
