"""The data set that every machine has."""

import json
import subprocess
import sys

import pytest

from hasten.data import stdlib_docs
from hasten.data.stdlib_docs import question_rows
from hasten.errors import DataError


@pytest.fixture(scope="module")
def rows():
    return question_rows()


def test_rows_are_real_unique_and_of_bearable_length(rows):
    assert len(rows) > 500
    answers = [row["answer"] for row in rows]
    assert len(set(answers)) == len(answers)
    assert all(80 <= len(answer) <= 900 for answer in answers)
    assert all(set(row) == {"question", "answer"} for row in rows)
    merge = next(row for row in rows if row["question"] == "What does the Python function `heapq.merge` do?")
    assert merge["answer"].startswith("Merge multiple sorted inputs into a single sorted output.")


def test_the_same_rows_in_the_same_order(rows):
    assert question_rows() == rows


def test_nothing_of_the_library_is_imported():
    program = (
        "import json, sys; from hasten.data.stdlib_docs import question_rows; before = set(sys.modules);"
        "question_rows(); print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert [name for name in json.loads(done.stdout) if not name.startswith("_sysconfig")] == []


def test_a_python_without_sources(monkeypatch, tmp_path):
    monkeypatch.setattr(stdlib_docs.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(DataError, match="no Python source files below.*name a data file of your own"):
        question_rows()
