"""Folders: texts or data, never a guess between them."""

import json

import datasets
import pytest

from hasten.data.readers.folder import is_saved, open_folder, open_saved
from hasten.data.settings import DataSettings
from hasten.errors import ConfigError, DataError


def filled(folder, contents):
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8", newline="\n")
    return folder


def test_texts_are_rows_in_sorted_order_with_all_below(tmp_path):
    contents = {
        "b.txt": "2",
        "a/z.md": "1",
        "c/a/x.TXT": "4",
        "c/b.md": "5",
        "c.txt": "3",
        "no.pdf": "x",
        ".h.txt": "x",
    }
    rows = open_folder(filled(tmp_path, contents | {".git/d.txt": "x"}), "my/texts/")
    # Folders and files by their names: 'a' < 'b.txt' < 'c' < 'c.txt'.
    assert [row["text"] for row in rows] == ["1", "2", "4", "5", "3"]
    assert (rows.place(2), rows.name) == ("row 3 (my/texts/c/a/x.TXT)", "my/texts/")
    assert rows.notes == ["my/texts/ is a folder: a/z.md, b.txt, c/a/x.TXT, c/b.md and 1 more"]


def test_data_files_follow_one_another(tmp_path):
    contents = {
        "data/b.jsonl": '{"n": 3}\n',
        "data/a.jsonl": '{"n": 1}\n{"n": 2}\n',
        "README.md": "about",
        "LICENSE.txt": "x",
    }
    rows = open_folder(filled(tmp_path, contents), "mine")
    assert [row["n"] for row in rows] == [1, 2, 3]
    assert (rows.place(2), rows.name) == ("mine/data/b.jsonl row 1", "mine")
    assert rows.notes == ["mine is a folder: data/a.jsonl, data/b.jsonl"]


def test_one_data_file(tmp_path):
    rows = open_folder(filled(tmp_path, {"a.json": '{"n": 1}\n{"n": 2}'}), "mine")
    assert (list(rows), rows.place(0)) == ([{"n": 1}, {"n": 2}], "row 1")
    assert rows.notes == ["mine is a folder: a.json", "mine/a.json holds JSON lines"]


def test_a_readme_among_texts_is_a_text(tmp_path):
    assert len(open_folder(filled(tmp_path, {"README.md": "about", "a.txt": "x"}), "mine")) == 2


@pytest.mark.parametrize(
    ("contents", "value", "remedy"),
    [
        ({}, "a folder without data", "Put such files into it, or name another."),
        ({"a.pdf": "x", ".a.txt": "x"}, "a folder without data", "Put such files into it, or name another."),
        ({"a.csv": "n\n1", "b.jsonl": "{}"}, "a folder with .csv and .jsonl files", "such as 'mine/a.csv'."),
        ({"b/a.txt": "x", "b.csv": "n\n1"}, "a folder with .csv and .txt files", "such as 'mine/b.csv'."),
    ],
)
def test_folders_that_cannot_be_told(tmp_path, contents, value, remedy):
    with pytest.raises(DataError) as caught:
        open_folder(filled(tmp_path, contents), "mine")
    assert (caught.value.subject, caught.value.value) == ("mine", value)
    assert remedy in caught.value.remedy


def test_a_faulty_file_in_a_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="mine/b.json: an empty list"):
        open_folder(filled(tmp_path, {"a.json": '[{"a": 1}]', "b.json": "[]"}), "mine")


def test_fingerprints_of_folders_follow_contents_and_not_names(tmp_path):
    prints = [
        open_folder(filled(tmp_path / str(number), contents), "mine").fingerprint
        for number, contents in enumerate(
            [
                {"a.jsonl": '{"n": 1}', "b.jsonl": '{"n": 2}'},
                {"c.jsonl": '{"n": 1}', "d/a.jsonl": '{"n": 2}'},
                {"a.jsonl": '{"n": 2}', "b.jsonl": '{"n": 1}'},
                {"a.txt": "1", "b.txt": "2"},
            ]
        )
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_a_data_set_that_datasets_saved(tmp_path):
    rows = [{"text": "a"}, {"text": "b"}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(tmp_path / "several")
    assert is_saved(tmp_path / "one") and is_saved(tmp_path / "several")
    assert list(open_saved(tmp_path / "one", "mine", DataSettings())) == rows
    several = open_saved(tmp_path / "several", "mine", DataSettings())
    assert (list(several), several.notes) == (rows, ["split 'train' of mine"])
    with pytest.raises(ConfigError, match="data.split: 'trian'. The splits of mine are train. Did you mean 'train'"):
        open_saved(tmp_path / "several", "mine", DataSettings(split="trian"))


def test_a_saved_data_set_that_is_damaged(tmp_path):
    filled(tmp_path, {"state.json": json.dumps({}), "dataset_info.json": json.dumps({})})
    (tmp_path / "only").mkdir()
    assert is_saved(tmp_path) and not is_saved(filled(tmp_path / "only", {"state.json": "{}"}))
    datasets.Dataset.from_list([{"a": 1}]).save_to_disk(tmp_path / "one")
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(DataError, match="mine: it cannot be read .*Save it again"):
        open_saved(tmp_path / "one", "mine", DataSettings())
