"""Rows that a program hands over."""

import pickle
import subprocess
import sys
from types import MappingProxyType

import datasets
import pytest

from hasten.data.readers.objects import DatasetRows, first_rows, from_dataset, open_object
from hasten.data.rows import BrokenRow, ListRows
from hasten.data.settings import DataSettings
from hasten.errors import ConfigError, DataError

ROWS = [{"text": f"row {number}", "meta": {"n": number}} for number in range(8)]


def opened(rows, **settings):
    return open_object(rows, DataSettings(**settings))


class Endless:
    """Counts how many rows were asked for."""

    def __init__(self):
        self.given = 0

    def __iter__(self):
        while True:
            self.given += 1
            yield {"n": self.given}


class MapStyle:
    """A data set as torch knows them: a length and rows by number, and no end of its own."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return ROWS[index % 8]


@pytest.mark.parametrize("kind", [list, tuple])
def test_lists_of_mappings(kind):
    rows = opened(kind(ROWS))
    assert (list(rows), rows.name, rows.place(6)) == (ROWS, "rows", "row 7")
    assert list(opened(kind([MappingProxyType({"a": 1})]))) == [{"a": 1}]


def test_broken_rows_stay_broken():
    assert isinstance(opened([BrokenRow("why"), {"a": 1}])[0], BrokenRow)


def test_a_source_is_itself():
    source = ListRows(ROWS)
    assert opened(source) is source


def test_a_data_set_with_a_length():
    assert list(opened(MapStyle())) == ROWS[:3]


@pytest.mark.parametrize(
    ("rows", "value", "remedy"),
    [
        ("train.jsonl", "type str", "Name files and data sets in data.source."),
        (b"x", "type bytes", "Name files and data sets in data.source."),
        ({"text": ["a", "b"]}, "type dict", "datasets.Dataset.from_dict"),
        (5, "type int", "Pass a list with a mapping for each row."),
    ],
)
def test_objects_whose_rows_cannot_be_told(rows, value, remedy):
    with pytest.raises(DataError) as caught:
        opened(rows)
    assert value in caught.value.value
    assert remedy in caught.value.remedy


def test_a_data_frame_is_refused_with_a_way():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(DataError, match="rows: an object of type DataFrame.*Dataset.from_pandas"):
        opened(pandas.DataFrame({"text": ["a"]}))


@pytest.mark.parametrize("rows", [[], (), iter([])])
def test_no_rows(rows):
    with pytest.raises(DataError, match="rows: no rows.*at least one row"):
        opened(rows, limit=4)


def test_a_row_that_is_no_mapping_is_named():
    with pytest.raises(DataError, match="rows: row 2 is of type str. Every row is a mapping.*Correct it"):
        opened([{"a": 1}, "x"])


# 16.6 of the pains.
@pytest.mark.parametrize("rows", [iter(ROWS), Endless(), datasets.IterableDataset.from_generator(lambda: iter(ROWS))])
def test_an_iterable_without_a_limit_names_the_setting(rows):
    with pytest.raises(ConfigError, match="data.limit: 0 for an iterable.*Set data.limit to the number of rows"):
        opened(rows)


def test_no_more_rows_are_asked_for_than_the_limit():
    rows = Endless()
    source = opened(rows, limit=3, heldout=2)  # those that are held out are not of those to train on
    assert (list(source), rows.given) == ([{"n": number} for number in range(1, 6)], 5)
    assert source.notes == ["the first 5 rows of the iterable"]


def test_an_iterable_may_end_before_the_limit():
    source = opened((row for row in ROWS), limit=100)
    assert (list(source), source.notes) == (ROWS, ["the first 8 rows of the iterable"])


def test_iterable_data_sets():
    given = []

    def generate():
        for row in ROWS:
            given.append(row)
            yield row

    data = datasets.IterableDataset.from_generator(generate)
    source = opened(data, limit=3, heldout=0)
    assert (list(source), source.notes) == (ROWS[:3], ["the first 3 rows of the iterable data set"])
    assert len(given) <= 4  # the library looks one ahead
    several = datasets.IterableDatasetDict({"train": data})
    assert opened(several, limit=1, heldout=1).notes == ["the first 2 rows of split 'train'"]


def test_a_data_set():
    rows = opened(datasets.Dataset.from_list(ROWS))
    assert list(rows) == ROWS
    assert [rows[index] for index in (7, 0, -2)] == [ROWS[7], ROWS[0], ROWS[6]]
    assert (len(rows), rows.name, rows.place(1), rows.notes) == (8, "rows", "row 2", [])


def test_rows_are_pythons_whatever_the_data_set_was_set_to_give():
    data = datasets.Dataset.from_dict({"n": [1, 2], "text": ["a", "b"]}).with_format("numpy")
    rows = opened(data)
    assert type(rows[0]["n"]) is int and type(next(iter(rows))["n"]) is int
    assert data.format["type"] == "numpy"  # the user's own is as it was


def test_a_transform_of_the_users_is_kept():
    data = datasets.Dataset.from_dict({"text": ["a", "b"]})
    upper = data.with_transform(lambda batch: {"text": [text.upper() for text in batch["text"]]})
    rows = opened(upper)
    assert [*rows] == [rows[0], rows[1]] == [{"text": "A"}, {"text": "B"}]
    assert rows.fingerprint != opened(data).fingerprint


def test_a_data_set_with_several_splits():
    one = datasets.Dataset.from_list(ROWS)
    several = datasets.DatasetDict({"train": one, "test": one.select([1])})
    assert list(opened(several)) == ROWS
    assert list(opened(several, split="test")) == [ROWS[1]]
    assert opened(several, split="test").notes == ["split 'test' of the data set"]
    with pytest.raises(ConfigError, match="data.split: 'tset'.*are train, test. Did you mean 'test'"):
        opened(several, split="tset")
    with pytest.raises(ConfigError, match="data.split: 'validation'.*are train, test. Set one"):
        opened(several, split="validation")


def test_an_empty_data_set():
    with pytest.raises(DataError, match="rows: an empty data set"):
        opened(datasets.Dataset.from_dict({"text": []}))


def test_fingerprints_of_data_sets_follow_their_content(tmp_path):
    data = datasets.Dataset.from_list(ROWS)
    fingerprint = opened(data).fingerprint
    halves = datasets.concatenate_datasets([data.select([0, 1, 2]), data.select(range(3, 8))])
    shuffled = data.select([7, 6, 5, 4, 3, 2, 1, 0]).select([7, 6, 5, 4, 3, 2, 1, 0])
    data.to_parquet(tmp_path / "a.parquet")
    stored = datasets.Dataset.from_parquet(str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "cache"))
    for same in (datasets.Dataset.from_list(ROWS), halves, shuffled, stored):
        assert opened(same).fingerprint == fingerprint
    changed = [{**ROWS[0], "text": "other"}, *ROWS[1:]]
    for other in (data.select(range(7)), data.select([1, 0, *range(2, 8)]), datasets.Dataset.from_list(changed)):
        assert opened(other).fingerprint != fingerprint
    assert opened(data.rename_column("text", "t")).fingerprint != fingerprint


def test_data_sets_travel_in_pickles():
    rows = from_dataset(datasets.Dataset.from_list(ROWS), "mine")
    assert isinstance(rows, DatasetRows)
    assert list(pickle.loads(pickle.dumps(rows))) == ROWS


def test_what_is_taken_of_an_iterable_is_said():
    source = first_rows(iter(ROWS), DataSettings(limit=2, heldout=0), "org/name", "split 'train' of org/name")
    assert (source.name, source.notes) == ("org/name", ["the first 2 rows of split 'train' of org/name"])


def test_lists_import_nothing():
    program = (
        "import sys; from hasten.data.readers.objects import open_object;"
        "from hasten.data.settings import DataSettings;"
        "list(open_object([{'a': 1}], DataSettings()));"
        "print([name for name in ('datasets', 'pyarrow', 'torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
