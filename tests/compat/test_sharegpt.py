import inspect

import pytest
from datasets import Dataset, DatasetDict

from hasten.compat.chat_templates import standardize_sharegpt, to_sharegpt
from hasten.errors import ConfigError, DataError

ROWS = [{"instruction": f"q{index}", "input": ["", "x", None][index % 3], "output": f"a{index}"} for index in range(9)]
TABLE = Dataset.from_list(ROWS)


def pair(question, answer):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def test_the_signature_is_the_documented_one():
    defaults = {name: each.default for name, each in inspect.signature(to_sharegpt).parameters.items()}
    assert defaults == {
        "dataset": inspect.Parameter.empty,
        "merged_prompt": "",
        "merged_column_name": "instruction",
        "output_column_name": "output",
        "remove_unused_columns": True,
        "conversation_extension": 1,
        "random_state": 3407,
    }


def test_a_column_is_the_question():
    made = to_sharegpt(TABLE)
    assert made.column_names == ["conversations"]
    assert made[4] == {"conversations": pair("q4", "a4")}


def test_a_prompt_from_several_columns():
    made = to_sharegpt(TABLE, merged_prompt="{instruction}[[ with {input}]]", output_column_name="output")
    assert [made[index]["conversations"] for index in range(3)] == [
        pair("q0", "a0"),
        pair("q1 with x", "a1"),
        pair("q2", "a2"),
    ]


def test_other_columns_can_stay():
    made = to_sharegpt(TABLE, merged_prompt="{instruction}!", merged_column_name="merged", remove_unused_columns=False)
    assert made[1] == {**ROWS[1], "merged": "q1!", "conversations": pair("q1!", "a1")}
    made = to_sharegpt(TABLE, merged_prompt="{instruction}!", remove_unused_columns=False)
    assert made[1]["instruction"] == "q1!"
    assert to_sharegpt(TABLE, remove_unused_columns=False)[1]["instruction"] == "q1"


def test_numbers_are_written_as_text():
    table = Dataset.from_list([{"age": 22.0, "fare": None, "survived": 0}, {"age": None, "fare": 7.5, "survived": 1}])
    made = to_sharegpt(table, "[[Age {age}.]][[ Fare {fare}.]]", output_column_name="survived")
    assert [row["conversations"] for row in made] == [pair("Age 22.0.", "0"), pair(" Fare 7.5.", "1")]


def test_conversations_are_extended_by_other_rows():
    made = to_sharegpt(TABLE, conversation_extension=3)
    assert made.num_rows == len(ROWS)
    for index, row in enumerate(made):
        turns = row["conversations"]
        numbers = [int(turn["value"][1:]) for turn in turns]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * 3
        assert numbers[0::2] == numbers[1::2]
        assert numbers[0] == index and len(set(numbers)) == 3


def test_the_draw_depends_on_the_seed_alone():
    once = to_sharegpt(TABLE, conversation_extension=3).to_list()
    assert to_sharegpt(TABLE, conversation_extension=3).to_list() == once
    assert to_sharegpt(TABLE, conversation_extension=3, random_state=1).to_list() != once


def test_many_rows_are_extended_in_order():
    table = Dataset.from_list([{"instruction": f"q{index}", "output": f"a{index}"} for index in range(2500)])
    made = to_sharegpt(table, conversation_extension=3, remove_unused_columns=False)
    assert made["instruction"][:] == table["instruction"][:]
    assert [row[0]["value"] for row in made["conversations"]] == table["instruction"][:]
    assert {len(row) for row in made["conversations"]} == {6}


def test_all_rows_in_one_conversation():
    made = to_sharegpt(TABLE.select([0, 1]), conversation_extension=2)
    assert [row["conversations"][2]["value"] for row in made] == ["q1", "q0"]


def test_then_standardized():
    made = standardize_sharegpt(to_sharegpt(TABLE, "{instruction}", conversation_extension=2))
    assert [turn["role"] for turn in made[0]["conversations"]] == ["user", "assistant"] * 2


def test_every_split():
    made = to_sharegpt(DatasetDict(train=TABLE, test=TABLE.select([3])))
    assert made["test"][0]["conversations"] == pair("q3", "a3")


def test_conversations_that_are_there_already_stay(capsys):
    table = Dataset.from_list([{"conversations": pair("a", "b")}])
    assert to_sharegpt(table) is table
    assert "has a column 'conversations' already" in capsys.readouterr().err
    table = Dataset.from_list([{"conversations": "old", "instruction": "q", "output": "a"}])
    assert to_sharegpt(table, remove_unused_columns=False)[0]["conversations"] == pair("q", "a")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"merged_column_name": "instructon"}, "merged_column_name: 'instructon'.*Did you mean 'instruction'"),
        ({"output_column_name": "ouput"}, "output_column_name: 'ouput'.*Did you mean 'output'"),
        ({"merged_prompt": "{inputs}"}, "merged_prompt: '{inputs}'.*Did you mean 'input'"),
        ({"merged_prompt": "[[{input}"}, r"merged_prompt: '\[\[.*End the optional part"),
        ({"conversation_extension": 0}, "conversation_extension: 0.*Use 1"),
        ({"conversation_extension": True}, "conversation_extension: True.*Use 1"),
        ({"conversation_extension": 10}, "conversation_extension: 10, but 9 rows.*Use 9 at most"),
    ],
)
def test_wrong_arguments_are_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        to_sharegpt(TABLE, **options)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"instruction": "q", "output": None}, "row 2: empty 'output'.*dataset.filter"),
        ({"instruction": "q", "output": " "}, "row 2: empty 'output'"),
        ({"instruction": None, "output": "a"}, "row 2: empty question"),
    ],
)
def test_rows_without_question_or_answer_are_named(row, match):
    table = Dataset.from_list([{"instruction": "q", "output": "a"}, row])
    with pytest.raises(DataError, match=match):
        to_sharegpt(table)


def test_no_dataset():
    with pytest.raises(ConfigError, match="dataset: a list.*Dataset.from_list"):
        to_sharegpt(ROWS)
