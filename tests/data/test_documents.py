"""Flat arrays of documents, in memory and on disk."""

import numpy as np
import pytest

from hasten.data.documents import Documents, DocumentsWriter
from hasten.data.packing import IGNORED

PARTS = [([5, 6, 7], [0, 1, 1], 4), ([8], [0], 5), ([9, 10], [0, 1], 7)]


def written(folder=None):
    writer = DocumentsWriter(folder)
    for ids, learnt, row in PARTS:
        writer.add(np.array(ids, np.int32), np.array(learnt, np.bool_), row)
    return writer.finish()


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_was_added_comes_back(on_disk, tmp_path):
    documents = written(tmp_path if on_disk else None)
    assert len(documents) == 3
    assert documents.lengths.tolist() == [3, 1, 2] and documents.supervised.tolist() == [2, 0, 1]
    assert documents.rows.tolist() == [4, 5, 7]
    assert [example["input_ids"].tolist() for example in documents] == [ids for ids, _, _ in PARTS]
    assert documents[0]["labels"].tolist() == [IGNORED, 6, 7] and documents[-1]["labels"].tolist() == [IGNORED, 10]
    assert documents[0]["input_ids"].dtype == documents[0]["labels"].dtype == np.int32
    assert [example["input_ids"].tolist() for example in documents[1:]] == [[8], [9, 10]]
    with pytest.raises(IndexError, match="document 3 of 3"):
        documents[3]


def test_on_disk_they_are_mapped_and_leave_nothing_unfinished(tmp_path):
    written(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ends.bin",
        "ids.bin",
        "learnt.bin",
        "rows.bin",
        "supervised.bin",
    ]
    again = Documents.load(tmp_path)
    assert isinstance(again.ids, np.memmap) and again.ids.tolist() == [5, 6, 7, 8, 9, 10]
    assert again.learnt.dtype == np.bool_ and again.learnt.tolist() == [False, True, True, False, False, True]


@pytest.mark.parametrize("name", ["ids", "learnt", "ends", "supervised", "rows"])
@pytest.mark.parametrize("cut", [8, 3])
def test_a_file_that_was_cut_off_is_noticed(name, cut, tmp_path):
    written(tmp_path)
    file = tmp_path / f"{name}.bin"
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(ValueError, match="but not all of them|multiple of the data-type size"):
        Documents.load(tmp_path)


def test_files_are_closed_when_writing_fails(tmp_path):
    with pytest.raises(RuntimeError), DocumentsWriter(tmp_path) as writer:
        writer.add(np.array([5], np.int32), np.array([False]), 0)
        raise RuntimeError
    assert (tmp_path / "ids.bin").read_bytes() == np.array([5], np.int32).tobytes()


@pytest.mark.parametrize("on_disk", [False, True])
def test_no_documents(on_disk, tmp_path):
    documents = DocumentsWriter(tmp_path if on_disk else None).finish()
    assert len(documents) == 0 and list(documents) == [] and documents.lengths.tolist() == []
