"""Rows become windows."""

import json

import pytest
import torch

from hasten.errors import DataError
from hasten.quant.calibration import read_windows
from support import tiny

TEXT = "the red dog and the green cat, one two three. "


@pytest.fixture
def rows_file(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": f"{number} {TEXT * 4}"}) + "\n" for number in range(40)), "utf-8")
    return str(file)


def test_windows_of_one_length_and_as_many_to_measure_on(rows_file):
    made = read_windows([rows_file], tiny.tokenizer(), tokens=512, longest=64)
    assert len(made.calibration) == 8 and len(made.heldout) == 8 and made.length == 64
    assert all(window.dtype == torch.int64 and len(window) == 64 for window in made.calibration + made.heldout)
    assert TEXT * 3 in tiny.tokenizer().decode(torch.cat(made.calibration))


def test_text_to_measure_on_is_other_text(rows_file):
    made = read_windows([rows_file], tiny.tokenizer(), tokens=512, longest=64)
    again = read_windows([rows_file], tiny.tokenizer(), tokens=1024, longest=64)
    assert torch.equal(torch.cat(made.calibration + made.heldout), torch.cat(again.calibration))


def test_whole_rows_count_and_templates_are_in(tmp_path):
    rows = [{"instruction": f"say {number}", "output": TEXT * 2} for number in range(30)]
    made = read_windows(["unused"], tiny.tokenizer(), tokens=512, longest=64, rows=rows)
    assert tiny.tokenizer().decode(made.calibration[0]).startswith("<|im_start|>user\nsay ")


def test_every_source_has_its_share(tmp_path):
    files = []
    for word in ("red", "blue"):
        files.append(tmp_path / f"{word}.jsonl")
        files[-1].write_text("".join(json.dumps({"text": f"{word} " * 10}) + "\n" for _ in range(200)), "utf-8")
    made = read_windows([str(file) for file in files], tiny.tokenizer(), tokens=512, longest=64)
    text = tiny.tokenizer().decode(torch.cat(made.calibration))
    assert 0.5 < text.count("red") / text.count("blue") < 2


def test_few_rows_are_divided(rows_file):
    made = read_windows([rows_file], tiny.tokenizer(), tokens=10**6, longest=64)
    together = len(made.calibration) + len(made.heldout)
    assert len(made.heldout) == together // 5 > 0


def test_one_window_leaves_nothing_to_measure_on():
    rows = [{"text": TEXT * 30}]
    made = read_windows(["unused"], tiny.tokenizer(), tokens=10**6, longest=350, rows=rows)
    assert len(made.calibration) == 1 and made.heldout == ()


def test_too_few_tokens():
    with pytest.raises(DataError) as caught:
        read_windows(["unused"], tiny.tokenizer(), tokens=512, longest=64, rows=[{"text": "one two"}])
    assert "the calibration rows: " in str(caught.value) and " tokens. At least 256 are needed" in str(caught.value)
    assert "Add rows of the kind that the model will see." in str(caught.value)


def test_no_rows(tmp_path):
    file = tmp_path / "empty.jsonl"
    file.write_text("", "utf-8")
    with pytest.raises(DataError) as caught:
        read_windows([str(file)], tiny.tokenizer(), tokens=512, longest=64)
    assert "empty.jsonl" in str(caught.value)
