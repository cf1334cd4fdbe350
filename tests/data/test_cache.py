"""Prepared rows are found again when nothing changed, and never when something did."""

import copy
import errno

import numpy as np
import pytest

from hasten.data import cache as prepared_cache
from hasten.data.prepare import prepare
from hasten.data.settings import DataSettings
from hasten.errors import DataError, StorageError
from support import tiny

ROWS = [{"question": f"q{number}", "answer": f"a{number}"} for number in range(5)]


@pytest.fixture
def tokenizer():
    return tiny.tokenizer()


def same(first, second):
    pairs = zip(first.documents, second.documents, strict=True)
    return all(np.array_equal(a[name], b[name]) for a, b in pairs for name in a) and first.report == second.report


def test_a_second_run_reads_what_the_first_wrote(tokenizer, tmp_path):
    first = prepare(ROWS, tokenizer, DataSettings(), cache=tmp_path)
    again = prepare(copy.deepcopy(ROWS), tiny.tokenizer(), DataSettings(), cache=tmp_path)
    assert not first.from_cache and again.from_cache and first.key == again.key
    assert same(first, again) and same(first, prepare(ROWS, tokenizer, DataSettings()))
    assert [path.name for path in tmp_path.iterdir()] == [first.key]


# 16.5 of the pains.
def test_one_changed_character_of_the_template_is_another_key(tokenizer, tmp_path):
    first = prepare(ROWS, tokenizer, DataSettings(), cache=tmp_path)
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "Assistant")
    second = prepare(ROWS, tokenizer, DataSettings(), cache=tmp_path)
    assert second.key != first.key and not second.from_cache
    tokenizer.chat_template = tiny.CHATML.replace("<|im_end|>\n", "<|im_end|>\n\n")
    third = prepare(ROWS, tokenizer, DataSettings(), cache=tmp_path)
    assert third.documents[0]["input_ids"].tolist() != first.documents[0]["input_ids"].tolist()


@pytest.mark.parametrize(
    "changed",
    [
        {"max_length": 512},
        {"loss_on": "last"},
        {"too_long": "drop"},
        {"control_tokens": "control"},
        {"merge_turns": True},
        {"format": "question-answer"},
    ],
)
def test_every_setting_that_changes_tokens_is_part_of_the_key(changed, tokenizer):
    key = prepared_cache.key_of("f", tokenizer, DataSettings(), "")
    assert key != prepared_cache.key_of("f", tokenizer, DataSettings(**changed), "")


def test_rows_tokenizer_and_day_are_part_of_the_key(tokenizer):
    settings = DataSettings()
    key = prepared_cache.key_of("f", tokenizer, settings, "")
    assert key == prepared_cache.key_of("f", tokenizer, DataSettings(heldout=3, seed=1, limit=4), "")
    other = tiny.tokenizer()
    other.add_tokens(["zebra"])
    assert (
        len(
            {
                key,
                *(
                    prepared_cache.key_of(*rest)
                    for rest in [
                        ("g", tokenizer, settings, ""),
                        ("f", other, settings, ""),
                        ("f", tokenizer, settings, "2026-01-31"),
                    ]
                ),
            }
        )
        == 4
    )


def test_a_broken_entry_is_made_anew(tokenizer, tmp_path):
    first = prepare(ROWS, tokenizer, DataSettings(), cache=tmp_path)
    (tmp_path / first.key / "report.json").write_text("{", encoding="utf-8")
    second = prepare(ROWS, tokenizer, DataSettings(), cache=tmp_path)
    assert not second.from_cache and same(first, second)
    (tmp_path / first.key / "ids.npy").write_bytes(b"")
    assert not prepare(ROWS, tokenizer, DataSettings(), cache=tmp_path).from_cache
    assert prepare(ROWS, tokenizer, DataSettings(), cache=tmp_path).from_cache


def test_rows_that_cannot_be_used_leave_nothing(tokenizer, tmp_path):
    with pytest.raises(DataError):
        prepare([{"question": "", "answer": ""}], tokenizer, DataSettings(), cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_done_without_and_said(tokenizer, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    prepared = prepare(ROWS, tokenizer, DataSettings(), cache=tmp_path / "file")
    assert len(prepared.documents) == 5 and not prepared.key
    assert "cannot be written: rows are prepared for this run only" in prepared.report.lines()[-1]


def test_a_full_disk_leaves_nothing(tokenizer, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepared_cache.Documents, "load", full)
    with pytest.raises(StorageError, match="no space left"):
        prepare(ROWS, tokenizer, DataSettings(), cache=tmp_path)
    assert list(tmp_path.iterdir()) == []
