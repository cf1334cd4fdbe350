import pytest
from datasets import Dataset, IterableDataset

from hasten.compat.formatting import format_dataset
from hasten.errors import ConfigError

ROWS = [{"question": f"q{number}", "answer": f"a{number}"} for number in range(3)]


def of_batch(rows):
    return [f"{question} {answer}" for question, answer in zip(rows["question"], rows["answer"], strict=True)]


def of_row(row):
    return [row["question"] + " " + row["answer"]]


@pytest.mark.parametrize("function", [of_batch, of_row, lambda row: [f"{row['question']} {row['answer']}"]])
@pytest.mark.parametrize("count", [1, 3])
def test_list_of_strings(function, count):
    made = format_dataset(Dataset.from_list(ROWS[:count]), function, None)
    assert made["text"][:] == ["q0 a0", "q1 a1", "q2 a2"][:count]
    assert made.column_names == ["text"]


def test_several_texts_of_one_row():
    made = format_dataset(
        Dataset.from_list(ROWS), lambda row: [row["question"].upper(), row["answer"].upper(), "c"], None
    )
    assert made.num_rows == 9


def test_streaming():
    rows = IterableDataset.from_generator(lambda: iter(ROWS))
    assert [row["text"] for row in format_dataset(rows, of_batch, None)] == ["q0 a0", "q1 a1", "q2 a2"]


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (lambda row: f"{row['question']}", "returned a str"),
        (lambda row: {"text": "a"}, "returned a dict"),
        (lambda row: [1], "returned a list of int"),
        (lambda row: None, "returned a NoneType"),
    ],
)
def test_something_else(function, value):
    with pytest.raises(ConfigError, match=rf"formatting_func: it {value}.*list of strings.*Return \[text\]"):
        format_dataset(Dataset.from_list(ROWS), function, None)
