"""Row formats: found from the columns, and every row that is not used has a reason."""

import pytest

from hasten.data.formats import FORMATS, Conversation, PlainText, RowProblem, detect, read_messages
from hasten.errors import DataError

QA = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


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


def test_a_key_that_holds_none_is_no_column():
    rows = [{"messages": None, "question": "q", "answer": "a"}]
    assert detect(rows).name == "question-answer"


# 16.1 of the pains.
def test_a_misspelt_column_is_proposed():
    with pytest.raises(DataError) as caught:
        detect([{"instrucion": "q", "output": "a"}])
    assert caught.value.value == "instrucion, output"
    assert "instruction+output" in caught.value.rule and "messages" in caught.value.rule
    assert caught.value.remedy == "'instrucion' looks like 'instruction': rename it."


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
        ("text", "no messages"),
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
    kind = next(candidate for candidate in FORMATS if candidate.columns[0] in row)
    with pytest.raises(RowProblem) as caught:
        kind.read(row)
    assert str(caught.value) == reason


def test_an_empty_prompt_is_allowed():
    assert detect([{"prompt": "", "completion": "c"}]).read({"prompt": "", "completion": "c"}) == PlainText("", "c")
