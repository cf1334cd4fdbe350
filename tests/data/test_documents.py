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
        "ends.npy",
        "ids.npy",
        "learnt.npy",
        "rows.npy",
        "supervised.npy",
    ]
    again = Documents.load(tmp_path)
    assert isinstance(again.ids, np.memmap) and again.ids.tolist() == [5, 6, 7, 8, 9, 10]
    assert np.load(tmp_path / "learnt.npy").dtype == np.bool_


@pytest.mark.parametrize("on_disk", [False, True])
def test_no_documents(on_disk, tmp_path):
    documents = DocumentsWriter(tmp_path if on_disk else None).finish()
    assert len(documents) == 0 and list(documents) == [] and documents.lengths.tolist() == []
