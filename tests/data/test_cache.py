"""Prepared rows are found again when nothing changed, and never when something did."""

import copy
import errno
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest

from hasten.data import cache as prepared_cache
from hasten.data.documents import DocumentsWriter
from hasten.data.formats import detect
from hasten.data.prepare import prepare
from hasten.data.rows import ListRows, Mixture
from hasten.data.settings import DataSettings
from hasten.errors import DataError
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
        {"fold_system": True},
        {"inserted_text": "refuse"},
        {"columns": ["query=question"]},
    ],
)
def test_every_setting_that_changes_tokens_is_part_of_the_key(changed, tokenizer):
    assert key_of(tokenizer) != key_of(tokenizer, DataSettings(**changed))


def key_of(tokenizer, settings=None, *, fingerprint="f", kind=None, day=""):
    return prepared_cache.key_of(fingerprint, kind or detect(ROWS), tokenizer, settings or DataSettings(), day)


def test_rows_format_tokenizer_and_day_are_part_of_the_key(tokenizer):
    key = key_of(tokenizer)
    assert key == key_of(tokenizer, DataSettings(heldout=3, seed=1, limit=4, format="question-answer"))
    other = tiny.tokenizer()
    other.add_tokens(["zebra"])
    changed = [
        key_of(tokenizer, fingerprint="g"),
        key_of(tokenizer, kind=detect([{"query": "q", "response": "a"}])),
        key_of(other),
        key_of(tokenizer, day="2026-01-31"),
    ]
    assert len({key, *changed}) == 5


def test_a_broken_entry_is_made_anew(tokenizer, tmp_path):
    first = prepare(ROWS, tokenizer, DataSettings(), cache=tmp_path)
    (tmp_path / first.key / "report.json").write_text("{", encoding="utf-8")
    second = prepare(ROWS, tokenizer, DataSettings(), cache=tmp_path)
    assert not second.from_cache and same(first, second)
    (tmp_path / first.key / "ids.bin").write_bytes(b"")
    assert not prepare(ROWS, tokenizer, DataSettings(), cache=tmp_path).from_cache
    assert prepare(ROWS, tokenizer, DataSettings(), cache=tmp_path).from_cache


@pytest.mark.parametrize("name", ["ids", "learnt", "ends", "supervised", "rows"])
def test_an_entry_that_was_cut_off_is_made_anew(name, tokenizer, tmp_path):
    first = prepare(ROWS, tokenizer, DataSettings(), cache=tmp_path)
    file = tmp_path / first.key / f"{name}.bin"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    second = prepare(ROWS, tokenizer, DataSettings(), cache=tmp_path)
    assert not second.from_cache and same(second, prepare(ROWS, tokenizer, DataSettings()))


def test_documents_of_another_report_are_made_anew(tokenizer, tmp_path):
    first = prepare(ROWS, tokenizer, DataSettings(), cache=tmp_path)
    with DocumentsWriter(tmp_path / first.key) as writer:
        writer.add(np.array([5, 6], np.int32), np.array([False, True]), 0)
        writer.finish()
    assert not prepare(ROWS, tokenizer, DataSettings(), cache=tmp_path).from_cache


def test_the_same_rows_under_another_name_are_reported_under_it(tokenizer, tmp_path):
    rows = [*ROWS, {"question": "q", "answer": ""}]

    def prepared(name):
        parts = [ListRows(rows[:2], "a.jsonl"), ListRows(rows[2:], name)]
        return prepare(Mixture(parts), tokenizer, DataSettings(), cache=tmp_path)

    prepared("b.jsonl")
    again = prepared("c.jsonl")
    assert again.from_cache and again.report.source == "a.jsonl, c.jsonl"
    assert again.report.lines()[-1] == "left out, empty 'answer': 1 (c.jsonl row 4)"


def test_many_prepare_the_same_rows_at_once(tokenizer, tmp_path):
    together = Barrier(4)

    def one(cache):
        made = tiny.tokenizer()
        together.wait()
        return prepare(ROWS, made, DataSettings(), cache=cache)

    reference = prepare(ROWS, tokenizer, DataSettings())
    with ThreadPoolExecutor(4) as workers:
        for attempt in range(10):
            cache = tmp_path / str(attempt)
            made = list(workers.map(one, [cache] * 4))
            assert all(same(prepared, reference) for prepared in made)
            assert [path.name for path in cache.iterdir()] == [made[0].key]


def test_an_entry_that_appears_meanwhile_stays(tokenizer, tmp_path, monkeypatch):
    """Others read it: it must not be exchanged under their feet."""
    load = prepared_cache.load
    inodes = []

    def appears(cache, key):
        if not inodes:
            inodes.append(0)
            other = prepare(ROWS, tiny.tokenizer(), DataSettings(), cache=cache)
            inodes[0] = (cache / other.key).stat().st_ino
            return None
        return load(cache, key)

    monkeypatch.setattr(prepared_cache, "load", appears)
    made = prepare(ROWS, tokenizer, DataSettings(), cache=tmp_path)
    assert made.key and not made.from_cache and same(made, prepare(ROWS, tokenizer, DataSettings()))
    assert [path.stat().st_ino for path in tmp_path.iterdir()] == inodes


def test_rows_that_cannot_be_used_leave_nothing(tokenizer, tmp_path):
    with pytest.raises(DataError):
        prepare([{"question": "", "answer": ""}], tokenizer, DataSettings(), cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("batch", [0, 1])
def test_an_interrupted_preparation_leaves_nothing(batch, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("hasten.data.prepare._BATCH", 2)
    told = []

    def interrupt(count):
        told.append(count)
        if len(told) > batch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(ROWS, tokenizer, DataSettings(), cache=tmp_path, on_rows=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_swept_away(tokenizer, tmp_path):
    for name, age_s in (("old", 90_000), ("new", 60)):
        file = tmp_path / f".unfinished-{name}" / "key" / "ids.bin"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"x")
        for path in (file, *file.parents[:2]):
            os.utime(path, (time.time() - age_s,) * 2)
    made = prepare(ROWS, tokenizer, DataSettings(), cache=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".unfinished-new", made.key]


def test_a_cache_that_cannot_be_written_is_done_without_and_said(tokenizer, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    prepared = prepare(ROWS, tokenizer, DataSettings(), cache=tmp_path / "file")
    assert len(prepared.documents) == 5 and not prepared.key
    assert "prepared for this run only, because the cache cannot be written: " in prepared.report.lines()[-1]
    assert "a file is in the way" in prepared.report.lines()[-1]


def test_a_full_disk_is_done_without_and_leaves_nothing(tokenizer, tmp_path):
    """The limit of a file's size stands for that of a disk: writing fails in the middle."""
    resource = pytest.importorskip("resource", reason="only POSIX limits the size of files")
    rows = [{"question": f"q{number}", "answer": "one two three " * 20} for number in range(300)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        prepared = prepare(rows, tokenizer, DataSettings(), cache=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == [] and not prepared.key
    assert "this run only" in prepared.report.lines()[-1]
    assert len(prepared.documents) == 300 and prepared.report.kept == 300


def test_an_entry_that_may_not_be_read_is_made_anew(tokenizer, tmp_path, monkeypatch):
    prepare(ROWS, tokenizer, DataSettings(), cache=tmp_path)

    def closed(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(prepared_cache.Documents, "load", closed)
    prepared = prepare(ROWS, tokenizer, DataSettings(), cache=tmp_path)
    assert len(prepared.documents) == 5 and not prepared.from_cache
