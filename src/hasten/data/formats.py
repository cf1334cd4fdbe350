"""Rows become conversations: the format is found from the columns, said, and the same for all rows.

| format | columns |
|---|---|
| preference | `chosen`, `rejected`, and the question in `prompt`, `conversations`, `messages`, `question` or `instruction`, or as their common beginning |
| labelled | `messages`, `conversations`, or `prompt` and `completion`; `label`: true or false |
| messages | `messages`, `conversations` or `conversation`: list of {role, content} |
| conversations | the same columns: list of {from, value} (ShareGPT) |
| alpaca | `instruction`, `output` or `response`, optional `input`, `history` |
| question-answer | `question` and `answer`, `query` and `response`, `prompt` and `response` |
| prompt-completion | `prompt`, `completion`: one text whose second part is learnt, or two lists of turns |
| text | `text`: language modelling |

All but plain text may have `system` and `tools`. The first format whose columns the rows have is theirs; formats that
need more columns stand before those that need some of the same. Each source of a mixture has a format of its own. What
a turn looks like is in `turns`, what a call looks like in `tools`.
"""  # noqa: E501  # a table's row is one line

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice, takewhile
from typing import Any

from hasten.data.conversation import Conversation, Message, PlainText, Preference, RowProblem, with_flags
from hasten.data.rows import ListRows, Row, RowSource
from hasten.data.tools import read_tools
from hasten.data.turns import read_filled, read_text, read_turns, require_assistant
from hasten.errors import ConfigError, DataError, did_you_mean, nearest

Content = Conversation | PlainText | Preference

_LOOKED_AT = 1000
_TURN_FORMATS = ("messages", "conversations")
_OPTIONAL = ("input", "system", "tools", "history")
_QUESTIONS = ("prompt", "conversations", "messages", "conversation", "question", "instruction")
_CHOSEN = "supervised fine-tuning learns the chosen answers; rejected ones are left for preference training"
_LABELLED = "answers labelled true are learnt; rows labelled false are left out"


@dataclass(frozen=True)
class Format:
    """A row format: the columns that name it, and how a row is read.

    Attributes:
        name: as the setting `data.format` has it.
        columns: what a row must have, by hasten's names.
        read: a row -> what it says; raises `RowProblem`. It can be sent to other processes.
        note: what must be known about training on it, as one sentence for the report; empty where nothing must be.
        is_chat: whether its rows are rendered by the chat template.
        renames: our name -> theirs, for columns that have another name.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[Row], Content]
    note: str = ""
    is_chat: bool = True
    renames: Mapping[str, str] = field(default_factory=dict)

    def fits(self, row: Row) -> bool:
        """Whether a row has the columns."""
        row = _renamed(row, self.renames)
        return all(column in row for column in self.columns)


def detect(rows: Iterable[Row], wanted: str = "auto", columns: Sequence[str] = ()) -> Format:
    """The format whose columns the rows have: all columns of it in one row, and in no fewer than half as many rows as
    any other format's. So a few rows that strayed in do not decide for all, and of equals the first is meant.

    Args:
        rows: the first 1000 of each of their sources are looked at, whatever part of them is given, so that training
            and held-out rows are read alike; broken ones count for nothing.
        wanted: the format's name, or auto.
        columns: renamed columns as ``theirs=ours``; the format's `read` renames them too.

    Raises:
        ConfigError: no format of that name, or a renamed column that is written wrongly.
        DataError: no known columns, not those of the wanted format, or a renamed column that no row has; the nearest
            real name is proposed for a misspelt one.
    """
    origins = rows.origins if isinstance(rows, RowSource) else [ListRows(list(islice(rows, _LOOKED_AT)))]
    samples = [_whole(origin) for origin in origins]
    renames = _renames(columns, [row for sample in samples for row in sample])
    several = len(origins) > 1
    subjects = [f"columns of {origin.name}" if several else "data columns" for origin in origins]
    found = [_found(sample, wanted, renames, subject) for sample, subject in zip(samples, subjects, strict=True)]
    order = [one.columns for one in FORMATS]
    found.sort(key=lambda kind: order.index(kind.columns))
    kinds = list({(kind.columns, kind.is_chat, *kind.renames.items()): kind for kind in found}.values())
    return kinds[0] if len(kinds) == 1 else _either(kinds)


def _whole(rows: Iterable[Row]) -> list[Row]:
    """The first rows, without broken ones."""
    sample = list(islice(rows, _LOOKED_AT))
    whole = [row for row in sample if _broken(row) is None]
    if sample and not whole:
        raise DataError(
            "data",
            f"none of the first {len(sample)} rows can be read (the first: {_broken(sample[0])})",
            "At least one row must be whole.",
            "Correct the rows.",
        )
    return whole


def _found(rows: Sequence[Row], wanted: str, renames: Mapping[str, str], subject: str) -> Format:
    """The format of one source's rows."""
    present = {key for row in rows for key in row}
    renames = {ours: theirs for ours, theirs in renames.items() if theirs in present}
    whole = [_renamed(row, renames) for row in rows]
    filled = [{key for key, value in row.items() if value is not None} for row in whole]
    candidates = [one for one in _candidates(wanted) if wanted != "auto" or _is_meant(one, whole)]
    counts = [sum(columns.issuperset(one.columns) for columns in filled) for one in candidates]
    for candidate, count in zip(candidates, counts, strict=True):
        if count and 2 * count >= max(counts):
            return _settled(candidate, wanted, whole, renames)
    raise _unknown(wanted, set().union(*filled), subject)


def _either(kinds: Sequence[Format]) -> Format:
    """Several formats as one: every row is read in the first that it fits."""
    return Format(
        ", ".join(dict.fromkeys(kind.name for kind in kinds)),
        tuple("+".join(kind.columns) for kind in kinds),
        partial(_read_either, tuple(kinds)),
        "; ".join(dict.fromkeys(kind.note for kind in kinds if kind.note)),
        any(kind.is_chat for kind in kinds),
    )


def _read_either(kinds: Sequence[Format], row: Row) -> Content:
    return next((kind for kind in kinds if kind.fits(row)), kinds[0]).read(row)


def _candidates(wanted: str) -> list[Format]:
    if wanted == "auto":
        return list(FORMATS)
    names = dict.fromkeys(candidate.name for candidate in FORMATS)
    if wanted not in names:
        rule = f"The formats are auto, {', '.join(names)}."
        raise ConfigError("data.format", f"'{wanted}'", rule, did_you_mean(wanted, names, "Take one of them, or auto."))
    # Turns are read the same whatever their keys are called.
    alike = _TURN_FORMATS if wanted in _TURN_FORMATS else (wanted,)
    return sorted((one for one in FORMATS if one.name in alike), key=lambda one: one.name != wanted)


def _is_meant(candidate: Format, rows: Sequence[Row]) -> bool:
    """Whether columns alone decide: a `label` is a classifier's class too."""
    return candidate.name != "labelled" or any(isinstance(row.get("label"), bool) for row in rows)


def _settled(candidate: Format, wanted: str, rows: Sequence[Row], renames: Mapping[str, str]) -> Format:
    """The candidate with what only the rows themselves say."""
    name = candidate.name
    if name in _TURN_FORMATS:
        sharegpt = any(turn.get("from") is not None for turn in _turns(rows, candidate.columns[0]))
        name = wanted if wanted != "auto" else "conversations" if sharegpt else "messages"
    lists = name == "prompt-completion" and any(_has_turns(row) for row in rows)
    read = partial(_read_renamed, candidate, renames) if renames else candidate.read
    return replace(candidate, name=name, read=read, is_chat=candidate.is_chat or lists, renames=renames)


def _turns(rows: Sequence[Row], column: str) -> Iterator[dict[str, Any]]:
    lists = (row.get(column) for row in rows)
    return (turn for turns in lists if isinstance(turns, list) for turn in turns if isinstance(turn, dict))


def _unknown(wanted: str, present: set[str], subject: str) -> DataError:
    # Columns of labelled rows are those of other formats and one more.
    formats = _candidates(wanted) if wanted != "auto" else [one for one in FORMATS if one.name != "labelled"]
    known = list(dict.fromkeys(column for one in formats for column in one.columns))
    strange = sorted(present.difference(_known()))
    typos = {column: match for column in strange if (match := nearest(column, known))}
    expected = "; ".join(dict.fromkeys("+".join(one.columns) for one in formats))
    found = ", ".join(sorted(present)) or "none"
    alike = "; ".join(f"'{column}' looks like '{match}'" for column, match in typos.items())
    setting = ", ".join(f"{column}={match}" for column, match in typos.items()) or "theirs=ours"
    remedy = (f"{alike}: rename it" if typos else "Rename your columns") + f", or set data.columns to {setting}."
    if wanted == "auto":
        return DataError(subject, found, f"One of these sets is needed: {expected}.", remedy)
    return DataError("data.format", f"'{wanted}', but the columns are {found}", f"It needs {expected}.", remedy)


def _known() -> dict[str, None]:
    """All columns that some format reads, in their order."""
    return dict.fromkeys([*(column for one in FORMATS for column in one.columns), *_OPTIONAL])


def _renames(columns: Sequence[str], rows: Sequence[Row]) -> dict[str, str]:
    """Our name -> theirs."""
    present = dict.fromkeys(key for row in rows for key in row)
    known = _known()
    made: dict[str, str] = {}
    for item in columns:
        theirs, _, ours = (part.strip() for part in item.rpartition("="))
        if not theirs or not ours:
            rule = "A column with another name is written theirs=ours."
            raise ConfigError("data.columns", f"'{item}'", rule, "For example query=question.")
        if ours not in known:
            rule = f"'{ours}' is no column that a format reads."
            raise ConfigError("data.columns", f"'{item}'", rule, did_you_mean(ours, known, _one_of(known)))
        if ours in made:
            rule = f"'{ours}' is already '{made[ours]}'."
            raise ConfigError("data.columns", f"'{item}'", rule, "Take one of the two out.")
        if theirs not in present:
            rule = f"No row has a column '{theirs}'."
            raise DataError("data.columns", f"'{item}'", rule, did_you_mean(theirs, present, _one_of(present)))
        made[ours] = theirs
    return made


def _one_of(names: Iterable[str]) -> str:
    return f"Take one of {', '.join(names) or 'none'}."


def _renamed(row: Row, renames: Mapping[str, str]) -> Row:
    if not renames:
        return row
    others = {key: value for key, value in row.items() if key not in renames and key not in renames.values()}
    return others | {ours: row[theirs] for ours, theirs in renames.items() if theirs in row}


def _broken(row: Row) -> str | None:
    """Why a row could not even be taken from its source."""
    return getattr(row, "reason", None)


def _read(columns: tuple[str, ...], reader: Callable[[Row], Content], row: Row) -> Content:
    if (reason := _broken(row)) is not None:
        raise RowProblem(reason)
    for column in columns:
        if column not in row:
            raise _absent(column, row, columns)
    return reader(row)


def _read_renamed(kind: Format, renames: Mapping[str, str], row: Row) -> Content:
    if _broken(row) is not None:
        return kind.read(row)
    for ours, theirs in renames.items():
        if ours in kind.columns and theirs not in row:
            raise _absent(theirs, row, kind.columns)
    return kind.read(_renamed(row, renames))


def _absent(column: str, row: Row, needed: Sequence[str]) -> RowProblem:
    match = nearest(column, [key for key, value in row.items() if value is not None and key not in needed])
    return RowProblem(f"no '{column}'" + (f" ('{match}' looks like it)" if match else ""))


def _finished(row: Row, talk: Conversation) -> Conversation:
    require_assistant(talk)
    talk = _with_system(row, talk)
    return Conversation(talk.messages, read_tools(row.get("tools")), talk.learn)


def _with_system(row: Row, talk: Conversation) -> Conversation:
    if not row.get("system"):
        return talk
    text = read_text(row["system"], "system")
    if talk.messages[0] == {"role": "system", "content": text}:
        return talk
    if talk.messages[0]["role"] == "system":
        raise RowProblem("a system turn, and another text in 'system'")
    return talk.after_system(text)


def _said(row: Row, column: str, role: str) -> Conversation:
    """A column that is one side's text, or its turns."""
    value = row.get(column)
    if isinstance(value, (list, dict)):
        return read_turns([value] if isinstance(value, dict) else value)
    return Conversation([{"role": role, "content": read_filled(value, column)}])


def _read_turns(column: str, row: Row) -> Conversation:
    return _finished(row, read_turns(row.get(column)))


def _read_exchange(question: str, answer: str, row: Row) -> Conversation:
    asked, answered = _said(row, question, "user"), _said(row, answer, "assistant")
    flags = asked.flags
    if not (isinstance(row[question], str) and isinstance(row[answer], str)):
        # Turns that are set apart as the prompt are read, also those of an assistant.
        flags = tuple(False if flag is None else flag for flag in flags)
    return _finished(row, with_flags(asked.messages + answered.messages, flags + answered.flags))


def _read_alpaca(answer: str, row: Row) -> Conversation:
    messages = [
        *_history(row.get("history")),
        {"role": "user", "content": _instruction(row)},
        {"role": "assistant", "content": read_filled(row.get(answer), answer)},
    ]
    return _finished(row, Conversation(messages))


def _instruction(row: Row) -> str:
    instruction = read_filled(row.get("instruction"), "instruction")
    return f"{instruction}\n\n{read_text(row['input'], 'input')}" if row.get("input") else instruction


def _history(pairs: Any) -> Iterator[Message]:
    if not isinstance(pairs, (list, type(None))):
        raise RowProblem("'history' is no list of pairs")
    for pair in pairs or []:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise RowProblem("'history' is no list of pairs")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            yield {"role": role, "content": read_filled(text, "history")}


def _read_completion(row: Row) -> Content:
    if _has_turns(row):
        return _read_exchange("prompt", "completion", row)
    return PlainText(read_text(row.get("prompt"), "prompt"), read_filled(row.get("completion"), "completion"))


def _has_turns(row: Row) -> bool:
    return any(isinstance(row.get(column), (list, dict)) for column in ("prompt", "completion"))


def _read_plain(row: Row) -> PlainText:
    return PlainText("", read_filled(row.get("text"), "text"))


def _read_labelled(reader: Callable[[Row], Conversation], row: Row) -> Conversation:
    label = row.get("label")
    if label is None:
        raise RowProblem("None in 'label'")
    if not isinstance(label, bool):
        raise RowProblem("'label' is neither true nor false")
    if not label:
        raise RowProblem("labelled false: an answer not to learn")
    return reader(row)


def _read_preference(row: Row) -> Preference:
    chosen, rejected = (_said(row, column, "assistant").messages for column in ("chosen", "rejected"))
    if chosen[0]["role"] == rejected[0]["role"] == "assistant":
        asked = _question(row)
    else:  # whole conversations, which a `prompt` beside them only repeats
        if chosen == rejected:
            raise RowProblem("'chosen' and 'rejected' are the same, so the answer in them cannot be told")
        pairs = zip(chosen, rejected, strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        asked, chosen, rejected = Conversation(chosen[:shared]), chosen[shared:], rejected[shared:]
    if any(turns[:1] == [] or turns[0]["role"] != "assistant" for turns in (chosen, rejected)):
        raise RowProblem("'chosen' and 'rejected' do not answer the same question")
    return Preference(_with_system(row, asked).messages, chosen, rejected, read_tools(row.get("tools")))


def _question(row: Row) -> Conversation:
    column = next((name for name in _QUESTIONS if row.get(name) is not None), None)
    if column is None:
        raise RowProblem(f"no question: none of {', '.join(repr(name) for name in _QUESTIONS)}")
    if column == "instruction":
        return Conversation([{"role": "user", "content": _instruction(row)}])
    return _said(row, column, "user")


def _format(name: str, columns: str, reader: Callable[[Row], Content], note: str = "", is_chat: bool = True) -> Format:
    needed = tuple(columns.split())
    return Format(name, needed, partial(_read, needed, reader), note, is_chat)


def _turn_format(name: str, column: str) -> Format:
    return _format(name, column, partial(_read_turns, column))


def _exchange_format(columns: str) -> Format:
    return _format("question-answer", columns, partial(_read_exchange, *columns.split()))


def _labelled_format(columns: str, reader: Callable[[Row], Conversation]) -> Format:
    return _format("labelled", f"{columns} label", partial(_read_labelled, reader), _LABELLED)


FORMATS = (
    _format("preference", "chosen rejected", _read_preference, _CHOSEN),
    _labelled_format("messages", partial(_read_turns, "messages")),
    _labelled_format("conversations", partial(_read_turns, "conversations")),
    _labelled_format("prompt completion", partial(_read_exchange, "prompt", "completion")),
    _turn_format("messages", "messages"),
    _turn_format("conversations", "conversations"),
    _turn_format("messages", "conversation"),
    _format("alpaca", "instruction output", partial(_read_alpaca, "output")),
    _format("alpaca", "instruction response", partial(_read_alpaca, "response")),
    _exchange_format("question answer"),
    _exchange_format("query response"),
    _exchange_format("prompt response"),
    _format("prompt-completion", "prompt completion", _read_completion, is_chat=False),
    _format("text", "text", _read_plain, is_chat=False),
)
