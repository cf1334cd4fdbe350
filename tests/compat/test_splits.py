import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from hasten.compat.splits import per_split
from hasten.errors import ConfigError

ROWS = Dataset.from_list([{"a": 1}, {"a": 2}])


def first(dataset):
    return dataset.select([0])


def test_a_dataset():
    assert per_split(ROWS, first).to_list() == [{"a": 1}]


def test_every_split_of_a_dictionary():
    made = per_split(DatasetDict(train=ROWS, test=ROWS), first)
    assert isinstance(made, DatasetDict)
    assert {name: part.num_rows for name, part in made.items()} == {"train": 1, "test": 1}


@pytest.mark.parametrize(
    ("dataset", "remedy"),
    [
        ([{"a": 1}], "Use Dataset.from_list"),
        ({}, "Use Dataset.from_list"),
        (None, "Use Dataset.from_list"),
        (IterableDataset.from_generator(lambda: iter([{"a": 1}])), "streaming=False"),
    ],
)
def test_anything_else_is_refused(dataset, remedy):
    with pytest.raises(ConfigError, match=f"dataset: a {type(dataset).__name__}.*{remedy}"):
        per_split(dataset, first)
