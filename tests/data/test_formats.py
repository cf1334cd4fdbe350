"""Row formats: found from the columns, and every row that is not used has a reason."""

import json
import pickle
from collections import Counter
from pathlib import Path

import pytest

from hasten.data.formats import FORMATS, Conversation, PlainText, Preference, RowProblem, detect
from hasten.data.rows import BrokenRow, ListRows, Mixture, Selection
from hasten.data.settings import DataSettings
from hasten.errors import ConfigError, DataError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
QA = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def read_messages(turns, tools=None):
    """Turns as a row has them."""
    return detect([{"messages": QA}]).read({"messages": turns, "tools": tools})


@pytest.mark.parametrize(
    ("row", "name", "content"),
    [
        ({"messages": QA}, "messages", Conversation(QA)),
        (
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            "conversations",
            Conversation(QA),
        ),
        ({"instruction": "q", "output": "a"}, "alpaca", Conversation(QA)),
        ({"instruction": "q", "output": "a", "input": ""}, "alpaca", Conversation(QA)),
        (
            {"instruction": "q", "input": "i", "output": "a", "system": "s"},
            "alpaca",
            Conversation(
                [
                    {"role": "system", "content": "s"},
                    {"role": "user", "content": "q\n\ni"},
                    {"role": "assistant", "content": "a"},
                ]
            ),
        ),
        ({"question": "q", "answer": "a", "id": 7}, "question-answer", Conversation(QA)),
        ({"prompt": "def f", "completion": "oo():"}, "prompt-completion", PlainText("def f", "oo():")),
        ({"text": "once"}, "text", PlainText("", "once")),
    ],
)
def test_a_format_is_known_by_its_columns(row, name, content):
    found = detect([row])
    assert found.name == name
    assert found.read(row) == content
    assert found.is_chat == isinstance(content, Conversation)


def problem(kind, row):
    with pytest.raises(RowProblem) as caught:
        kind.read(row)
    return str(caught.value)


def test_a_key_that_holds_none_is_no_column():
    rows = [{"messages": None, "question": "q", "answer": "a"}]
    assert detect(rows).name == "question-answer"


# 16.1 of the pains.
def test_columns_of_different_rows_are_no_format():
    rows = [{"prompt": "q", "text": "t"}, {"response": "a", "text": "t"}]
    assert detect(rows).name == "text"
    with pytest.raises(DataError, match="data columns: answer, question"):
        detect([{"question": "q"}, {"answer": "a"}])


@pytest.mark.parametrize(("strays", "name"), [(0, "alpaca"), (4, "alpaca"), (5, "messages")])
def test_a_few_rows_that_strayed_in_do_not_decide_the_format(strays, name):
    rows = [{"messages": QA}] * strays + [{"instruction": "q", "output": "a"}] * 9
    assert detect(rows).name == name


def test_rows_without_a_label_do_not_turn_labelled_rows_into_others():
    rows = [{"messages": QA, "label": label} for label in (True, None, False, None)]
    assert detect(rows).name == "labelled"


ALPACA, PLAIN = {"instruction": "q", "output": "a"}, {"text": "once"}


def mixed(*parts, **options):
    return Mixture([ListRows(list(rows), f"{number}.jsonl") for number, rows in enumerate(parts)], **options)


def test_every_source_of_a_mixture_has_its_format():
    kind = detect(mixed([PLAIN], [ALPACA], [ALPACA]))
    assert (kind.name, kind.is_chat) == ("alpaca, text", True)
    assert kind.read(ALPACA) == Conversation(QA) and kind.read(PLAIN) == PlainText("", "once")
    assert kind.read({**PLAIN, **ALPACA}) == Conversation(QA), "the first in the table, as within one source"
    assert problem(kind, {"messages": QA}) == "no 'instruction'"
    assert pickle.loads(pickle.dumps(kind)).read(PLAIN) == PlainText("", "once")
    labelled = detect(mixed([{"messages": QA, "label": True}], [{"messages": QA}]))
    assert labelled.name == "labelled, messages" and "labelled false are left out" in labelled.note
    assert problem(labelled, {"messages": QA, "label": None}) == "None in 'label'"
    assert labelled.read({"messages": QA}) == Conversation(QA)


def test_sources_of_one_format_are_one():
    assert detect(mixed([ALPACA], [ALPACA])).name == "alpaca"
    assert detect(mixed([PLAIN] * 9, [ALPACA], alike=True)).name == "text", "the files of a folder have one format"


def test_a_source_of_an_unknown_format_is_an_error_whatever_the_others_are():
    with pytest.raises(DataError, match="columns of 1.jsonl: label, title"):
        detect(mixed([ALPACA], [{"title": "a", "label": 1}]))
    with pytest.raises(DataError, match="'alpaca', but the columns are text"):
        detect(mixed([ALPACA], [PLAIN]), "alpaca")


def test_columns_are_renamed_in_the_sources_that_have_them():
    rows = [{"query": "q", "answer": "a"}], [{"question": "r", "answer": "b"}]
    kind = detect(mixed(*rows), columns=["query=question"])
    assert kind.name == "question-answer"
    assert [kind.read(row).messages[0]["content"] for (row,) in rows] == ["q", "r"]
    with pytest.raises(DataError, match="No row has a column 'frage'"):
        detect(mixed([ALPACA], [PLAIN]), columns=["frage=question"])


def test_a_part_of_rows_has_the_format_of_all():
    rows = ListRows([ALPACA, ALPACA, {"messages": QA}, ALPACA])
    assert detect(rows[2:3]).name == detect(Selection(rows, [2])).name == "alpaca"


def test_a_misspelt_column_is_proposed():
    with pytest.raises(DataError) as caught:
        detect([{"instrucion": "q", "output": "a"}])
    assert caught.value.value == "instrucion, output"
    assert "instruction+output" in caught.value.rule and "messages" in caught.value.rule
    setting = "instrucion=instruction"
    assert caught.value.remedy == f"'instrucion' looks like 'instruction': rename it, or set data.columns to {setting}."
    assert detect([{"instrucion": "q", "output": "a"}], columns=[setting]).name == "alpaca"


def test_columns_that_look_like_nothing():
    with pytest.raises(DataError, match=r"data columns: x1, y2\. .*question\+answer.*Rename your columns"):
        detect([{"x1": 1, "y2": 2}])
    with pytest.raises(DataError, match="data columns: none"):
        detect([{}])


# 4.9 of the pains.
@pytest.mark.parametrize(("alias", "role"), [("human", "user"), ("gpt", "assistant"), ("model", "assistant")])
def test_role_aliases(alias, role):
    turns = [{"from": alias, "value": "x"}, {"role": "assistant", "content": "y"}]
    assert read_messages(turns).messages[0] == {"role": role, "content": "x"}


def test_arrow_fills_every_key_with_none():
    turns = [
        {"role": None, "content": None, "from": "human", "value": "q"},
        {"role": "assistant", "content": "a", "from": None, "value": None},
    ]
    assert read_messages(turns) == Conversation(QA)


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (None, "no messages"),
        ([], "no messages"),
        ("text", "messages that are text, and not JSON"),
        (["text"], "a message that is no object"),
        ([{"from": "narrator", "value": "x"}], "unknown role 'narrator'"),
        ([{"content": "x"}], "unknown role ''"),
        ([{"role": "user", "content": None}], "None in 'content'"),
        ([{"role": "user"}], "None in 'content'"),
        ([{"role": "user", "content": 5}], "'content' is not text"),
        ([{"role": "user", "content": " \n"}], "empty content"),
        ([{"role": "user", "content": "q"}], "no assistant turn"),
    ],
)
def test_why_a_conversation_is_not_used(turns, reason):
    with pytest.raises(RowProblem) as caught:
        read_messages(turns)
    assert str(caught.value) == reason


def test_an_empty_system_turn_is_allowed():
    messages = [{"role": "system", "content": ""}, *QA]
    assert read_messages(messages).messages == messages


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": None, "output": "a"}, "None in 'instruction'"),
        ({"instruction": "q", "output": ""}, "empty 'output'"),
        ({"instruction": "q", "output": "a", "input": 5}, "'input' is not text"),
        ({"question": "q", "answer": 42}, "'answer' is not text"),
        ({"prompt": None, "completion": "c"}, "None in 'prompt'"),
        ({"prompt": "p", "completion": " "}, "empty 'completion'"),
        ({"text": "\n"}, "empty 'text'"),
    ],
)
def test_why_a_flat_row_is_not_used(row, reason):
    assert problem(detect([dict.fromkeys(row, "x")]), row) == reason


def test_an_empty_prompt_is_allowed():
    assert detect([{"prompt": "", "completion": "c"}]).read({"prompt": "", "completion": "c"}) == PlainText("", "c")


USER, REPLY = QA
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
SYSTEM = {"role": "system", "content": "s"}
WORSE = {"role": "assistant", "content": "w"}


@pytest.mark.parametrize("column", ["messages", "conversations", "conversation"])
def test_turns_may_stand_in_any_of_three_columns_and_their_keys_name_the_format(column):
    assert detect([{column: QA}]).name == "messages"
    assert detect([{column: [HUMAN, GPT]}]).name == "conversations"
    for turns in (QA, [HUMAN, GPT]):
        for wanted in ("auto", "messages", "conversations"):
            found = detect([{column: turns}], wanted)
            assert found.columns == (column,) and found.name in (wanted, detect([{column: turns}]).name)
            assert found.read({column: turns}) == Conversation(QA)


def test_tools_and_system_stand_beside_the_turns():
    row = {"conversations": [HUMAN, GPT], "system": "s", "tools": '[{"name": "f"}]'}
    expected = Conversation([SYSTEM, *QA], [{"type": "function", "function": {"name": "f"}}])
    assert detect([row]).read(row) == expected
    row = {"messages": [SYSTEM, *QA], "system": "s", "tools": [{"type": "function", "function": {"name": "f"}}]}
    assert detect([row]).read(row) == expected
    row = {"question": "q", "answer": "a", "system": "s", "tools": "[]"}
    assert detect([row]).read(row) == Conversation([SYSTEM, *QA])


def test_two_system_texts_contradict_each_other():
    row = {"messages": [SYSTEM, *QA], "system": "another"}
    assert problem(detect([row]), row) == "a system turn, and another text in 'system'"


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"instruction": "q", "response": "a"}, "alpaca"),
        ({"query": "q", "response": "a"}, "question-answer"),
        ({"prompt": "q", "response": "a"}, "question-answer"),
    ],
)
def test_other_names_of_question_and_answer(row, name):
    found = detect([row])
    assert (found.name, found.is_chat, found.note) == (name, True, "")
    assert found.read(row) == Conversation(QA)


def test_alpaca_may_have_a_history():
    row = {"instruction": "q", "output": "a", "history": [["q1", "a1"], ("q2", "a2")]}
    contents = [message["content"] for message in detect([row]).read(row).messages]
    assert contents == ["q1", "a1", "q2", "a2", "q", "a"]
    for empty in (None, []):
        assert detect([row]).read({**row, "history": empty}) == Conversation(QA)
    for wrong in ("q1", ["q1"], [["q1"]], [["q1", "a1", "q2"]]):
        assert problem(detect([row]), {**row, "history": wrong}) == "'history' is no list of pairs"
    assert problem(detect([row]), {**row, "history": [["q1", None]]}) == "None in 'history'"


def test_prompt_and_completion_as_turns_are_a_conversation_whose_prompt_is_not_learnt():
    row = {"prompt": [SYSTEM, USER, REPLY, USER], "completion": [REPLY]}
    found = detect([row])
    assert (found.name, found.is_chat) == ("prompt-completion", True)
    assert found.read(row) == Conversation([SYSTEM, *QA, *QA], None, (False,) * 4 + (None,))
    row = {"prompt": "q", "completion": [GPT]}
    assert found.read(row) == Conversation(QA, None, (False, None))
    row = {"prompt": [{**USER, "train": True}], "completion": [{**REPLY, "train": False}]}
    assert found.read(row) == Conversation(QA, None, (True, False))


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "w"}, [USER]),
        ({"question": "q", "chosen": "a", "rejected": "w", "system": "s"}, [SYSTEM, USER]),
        ({"instruction": "q", "input": "i", "chosen": "a", "rejected": "w"}, [{"role": "user", "content": "q\n\ni"}]),
        ({"prompt": [SYSTEM, USER], "chosen": [REPLY], "rejected": [WORSE]}, [SYSTEM, USER]),
        ({"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "w"}}, [USER]),
        ({"messages": [USER, REPLY, USER], "chosen": "a", "rejected": WORSE}, [USER, REPLY, USER]),
        ({"chosen": [USER, REPLY], "rejected": [USER, WORSE]}, [USER]),
        ({"chosen": [*QA, *QA], "rejected": [*QA, USER, WORSE], "prompt": "q"}, [*QA, USER]),
        ({"chosen": [*QA, *QA], "rejected": [USER, WORSE], "messages": [*QA, *QA]}, [USER]),
    ],
)
def test_the_question_of_a_preference_stands_in_one_of_several_places(row, prompt):
    found = detect([row])
    assert (found.name, found.is_chat) == ("preference", True)
    assert found.note == (
        "supervised fine-tuning learns the chosen answers; rejected ones are left for preference training"
    )
    pair = found.read(row)
    assert isinstance(pair, Preference)
    assert pair.prompt == prompt
    assert pair.chosen[0] == REPLY and pair.rejected == [WORSE]
    assert pair.best().learn == (False,) * len(prompt) + (None,) * len(pair.chosen)


def test_a_preference_has_tools():
    row = {"prompt": "q", "chosen": "a", "rejected": "w", "tools": [{"name": "f"}]}
    pair = detect([row]).read(row)
    assert pair.tools == pair.best().tools == [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": "a", "rejected": "w"}, "no question: none of 'prompt', 'conversations', 'messages', "),
        ({"chosen": [USER, REPLY], "rejected": [SYSTEM, WORSE]}, "'chosen' and 'rejected' do not answer the same"),
        ({"chosen": QA, "rejected": [*QA, USER, WORSE]}, "'chosen' and 'rejected' do not answer the same question"),
        ({"chosen": QA, "rejected": QA}, "'chosen' and 'rejected' are the same, so the answer in them cannot be told"),
        ({"prompt": "q", "chosen": USER, "rejected": WORSE}, "'chosen' and 'rejected' do not answer the same question"),
        ({"prompt": "q", "chosen": "", "rejected": "w"}, "empty 'chosen'"),
        ({"prompt": "q", "chosen": None, "rejected": "w"}, "None in 'chosen'"),
        ({"prompt": "", "chosen": "a", "rejected": "w"}, "empty 'prompt'"),
        ({"prompt": 5, "chosen": "a", "rejected": "w"}, "'prompt' is not text"),
    ],
)
def test_why_a_preference_is_not_used(row, reason):
    assert problem(detect([row], "auto") if row["chosen"] else detect([{**row, "chosen": "a"}]), row).startswith(reason)


@pytest.mark.parametrize(
    "columns", [{"messages": QA}, {"conversations": [HUMAN, GPT]}, {"prompt": "q", "completion": "a"}]
)
def test_of_labelled_rows_the_good_ones_are_read(columns):
    rows = [{**columns, "label": True}, {**columns, "label": False}]
    found = detect(rows)
    assert (found.name, found.is_chat) == ("labelled", True)
    assert found.note == "answers labelled true are learnt; rows labelled false are left out"
    assert found.read(rows[0]) == Conversation(QA)
    assert problem(found, rows[1]) == "labelled false: an answer not to learn"
    assert problem(found, {**columns, "label": None}) == "None in 'label'"
    assert problem(found, {**columns, "label": "good"}) == "'label' is neither true nor false"
    assert problem(found, columns) == "no 'label'"


def test_a_label_that_is_a_class_does_not_make_rows_labelled():
    assert detect([{"messages": QA, "label": 1}]).name == "messages"
    assert detect([{"text": "once", "label": True}]).name == "text"
    found = detect([{"messages": QA, "label": 1}], "labelled")
    assert problem(found, {"messages": QA, "label": 1}) == "'label' is neither true nor false"


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"messages": QA, "text": "once"}, "text"),
        ({"question": "q", "answer": "a", "instruction": "q", "output": "a"}, "question-answer"),
        ({"messages": QA, "chosen": "a", "rejected": "b"}, "messages"),
        ({"messages": QA, "label": True}, "messages"),
    ],
)
def test_the_wanted_format_is_taken(row, wanted):
    assert detect([row]).name != wanted
    assert detect([row], wanted).name == wanted


def test_of_two_columns_of_turns_the_wanted_one_is_taken():
    both = {"messages": QA, "conversations": [HUMAN, GPT]}
    assert detect([both]).columns == detect([both], "messages").columns == ("messages",)
    assert detect([both], "conversations").columns == ("conversations",)
    assert detect([{**both, "messages": None}], "messages").columns == ("conversations",)


def test_a_wanted_format_whose_columns_are_missing():
    with pytest.raises(DataError) as caught:
        detect([{"instrucion": "q", "output": "a"}], "alpaca")
    assert caught.value.subject == "data.format"
    assert caught.value.value == "'alpaca', but the columns are instrucion, output"
    assert caught.value.rule == "It needs instruction+output; instruction+response."
    assert caught.value.remedy.endswith("rename it, or set data.columns to instrucion=instruction.")
    # A column of another format is no misspelt one, near as it may be: "question" is no "conversation".
    with pytest.raises(
        DataError, match=r"It needs messages; conversation; .*Rename your columns, or set data\.columns"
    ):
        detect([{"question": "q", "answer": "a"}], "messages")
    with pytest.raises(DataError, match=r"'text', but the columns are answer, question\. It needs text\. Rename your"):
        detect([{"question": "q", "answer": "a"}], "text")
    with pytest.raises(DataError, match=r"It needs messages\+label; conversations\+label; prompt\+completion\+label"):
        detect([{"messages": QA}], "labelled")


def test_every_format_of_the_setting_is_in_the_table_and_no_other():
    choices = DataSettings.__dataclass_fields__["format"].type
    for kind in FORMATS:
        assert f'"{kind.name}"' in choices.replace("'", '"')
        assert detect([dict.fromkeys(kind.columns, True)], kind.name).columns == kind.columns
    with pytest.raises(ConfigError, match=r"data\.format: 'alpacca'\. The formats are auto, .*Did you mean 'alpaca'"):
        detect([{"text": "x"}], "alpacca")
    with pytest.raises(ConfigError, match=r"'xyz'\. .* Take one of them, or auto"):
        detect([{"text": "x"}], "xyz")


def test_columns_of_other_names():
    rows = [{"ask": "q", "reply": "a", "question": "never"}, {"ask": "q"}, {"reply": "a"}, {"aks": "q", "reply": "a"}]
    found = detect(rows, columns=["ask=question", " reply = answer"])
    assert (found.name, found.columns) == ("question-answer", ("question", "answer"))
    assert found.read(rows[0]) == Conversation(QA)
    assert problem(found, rows[1]) == "no 'reply'"
    assert problem(found, rows[2]) == "no 'ask'"
    assert problem(found, rows[3]) == "no 'ask' ('aks' looks like it)"
    # Two may change places.
    row = {"output": "q", "instruction": "a"}
    assert detect([row], columns=["output=instruction", "instruction=output"]).read(row) == Conversation(QA)
    row = {"body": "once", "text": None}
    assert detect([row], "text", ["body=text"]).read(row) == PlainText("", "once")
    row = {"x=y": "once"}
    assert detect([row], columns=["x=y=text"]).read(row) == PlainText("", "once")


def test_a_renamed_column_is_no_longer_what_it_was():
    row = {"system": "q", "answer": "a"}
    assert detect([row], columns=["system=question"]).read(row) == Conversation(QA)
    rows = [{"question": "q", "answer": "a", "sys": "s"}, {"question": "q", "answer": "a", "system": "other"}]
    found = detect(rows, columns=["sys=system"])
    assert [found.read(row) for row in rows] == [Conversation([SYSTEM, *QA]), Conversation(QA)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["query"], r"data\.columns: 'query'\. .* theirs=ours\. For example query=question"),
        (["=question"], r"'=question'\. .* For example"),
        (["query="], r"'query='\. .* For example"),
        (["query=questoin"], r"'query=questoin'\. 'questoin' is no column .* Did you mean 'question'"),
        (["query=zz"], r"'query=zz'\. 'zz' is no column .* Take one of chosen, rejected, "),
        (["query=question", "reply=question"], r"'reply=question'\. 'question' is already 'query'\. Take one"),
    ],
)
def test_renames_that_are_written_wrongly(columns, message):
    with pytest.raises(ConfigError, match=message):
        detect([{"query": "q", "reply": "a"}], columns=columns)


@pytest.mark.parametrize(
    ("renamed", "remedy"),
    [("qeury=question", "Did you mean 'query'?"), ("body=question", "Take one of query, reply.")],
)
def test_a_renamed_column_that_no_row_has(renamed, remedy):
    with pytest.raises(DataError) as caught:
        detect([{"query": "q"}, {"reply": "a"}], columns=[renamed])
    assert caught.value.value == f"'{renamed}'"
    assert caught.value.rule == f"No row has a column '{renamed.partition('=')[0]}'."
    assert caught.value.remedy == remedy


def test_broken_rows_are_passed_over_and_named_when_read():
    broken = BrokenRow("line 3 is not JSON")
    for columns, question in (((), "question"), (["ask=question"], "ask")):
        found = detect([broken, {question: "q", "answer": "a"}], columns=columns)
        assert found.name == "question-answer"
        assert problem(found, broken) == "line 3 is not JSON"
    with pytest.raises(DataError, match=r"data: none of the first 2 rows .*line 3 is not JSON.* Correct the rows"):
        detect([broken, broken])


# A24 of the pains, as far as rows are read here.
@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "q"}, "no 'output'"),
        ({"instrucion": "q", "output": "a"}, "no 'instruction' ('instrucion' looks like it)"),
        ({"instrucion": None, "output": "a"}, "no 'instruction'"),
        ({}, "no 'instruction'"),
    ],
)
def test_a_row_that_lacks_a_column(row, reason):
    assert problem(detect([{"instruction": "q", "output": "a"}]), row) == reason


def test_a_row_that_lacks_its_turns():
    kind = detect([{"messages": QA}])
    assert problem(kind, {"mesages": QA}) == "no 'messages' ('mesages' looks like it)"
    assert problem(kind, {"conversations": QA}) == "no 'messages'"
    assert problem(kind, {"messages": None}) == "no messages"


def test_only_the_first_rows_decide_and_any_iterable_is_taken():
    def rows():
        for number in range(2000):
            yield {"text": "once"} if number < 1000 else {"chosen": "a", "rejected": "b"}

    assert detect(rows()).name == "text"


@pytest.mark.parametrize("columns", [(), ("ask=question",)])
def test_a_format_can_be_sent_to_another_process(columns):
    row = {"ask" if columns else "question": "q", "answer": "a"}
    found = pickle.loads(pickle.dumps(detect([row], columns=columns)))
    assert found.read(row) == Conversation(QA)


# A7 of the pains: Arrow fills every key of every row with None.
def test_tool_conversations_come_through_arrow():
    from datasets import Dataset

    def row(arguments, schema):
        call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
        return {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
                REPLY,
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": schema}}}],
        }

    given = [
        row({"city": "Oslo"}, {"city": {"type": "string"}}),
        row({"n": 3}, {"n": {"type": "integer", "minimum": 1}}),
        {"messages": QA, "tools": None},
    ]
    stored = list(Dataset.from_list(given))
    assert "None" in str(stored[0]["messages"][0]), "Arrow fills"
    kind = detect(stored)
    for before, after in zip(given, stored, strict=True):
        read = kind.read(after)
        assert "None" not in str(read.messages) and "null" not in json.dumps(read.messages)
        expected = [{**turn, "content": turn["content"] or ""} for turn in before["messages"]]
        assert read.messages == expected
        assert read.tools == before["tools"]


def shared(name):
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"the data set {name} is not on this machine")
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


@pytest.mark.parametrize(
    ("name", "kind", "columns", "read", "problems"),
    [
        ("alpaca_en_demo.json", "alpaca", ("instruction", "output"), 999, {}),
        ("c4_demo.jsonl", "text", ("text",), 300, {}),
        ("dpo_en_demo.json", "preference", ("chosen", "rejected"), 300, {}),
        ("glaive_toolcall_en_demo.json", "conversations", ("conversations",), 300, {}),
        (
            "kto_en_demo.json",
            "labelled",
            ("messages", "label"),
            150,
            {"labelled false: an answer not to learn": 150},
        ),
    ],
)
def test_real_rows_are_read(name, kind, columns, read, problems):
    rows = shared(name)
    found = detect(rows)
    assert (found.name, found.columns) == (kind, columns)
    contents, reasons = [], Counter()
    for row in rows:
        try:
            contents.append(found.read(row))
        except RowProblem as reason:
            reasons[str(reason)] += 1
    assert (len(contents), dict(reasons)) == (read, problems)


def test_real_tool_conversations_have_calls_results_and_tools():
    rows = shared("glaive_toolcall_en_demo.json")
    kind = detect(rows)
    talks = [kind.read(row) for row in rows]
    turns = [message for talk in talks for message in talk.messages]
    assert Counter(turn["role"] for turn in turns) == {"user": 746, "assistant": 746 + 211, "tool": 211}
    calls = [call for turn in turns for call in turn.get("tool_calls", [])]
    assert len(calls) == sum("tool_calls" in turn for turn in turns) == 211
    assert all(isinstance(call["function"]["arguments"], dict) for call in calls)
    assert calls[0]["function"] == {
        "name": "search_recipes",
        "arguments": {"ingredients": ["chicken", "bell peppers", "rice"]},
    }
    assert sum(talk.tools is None for talk in talks) == 109
    schemas = [tool for talk in talks for tool in talk.tools or []]
    assert all(tool["type"] == "function" and tool["function"]["name"] for tool in schemas)


def test_real_preferences_teach_the_chosen_answer():
    rows = shared("dpo_en_demo.json")
    kind = detect(rows)
    for row in rows:
        best = kind.read(row).best()
        assert best.messages[-1] == {"role": "assistant", "content": row["chosen"]["value"]}
        assert best.learn == (False,) * len(row["conversations"]) + (None,)
