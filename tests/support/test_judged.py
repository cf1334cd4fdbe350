"""What counts tests that ask other programs."""

import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from support.judged import counted, judges_of, texts_of, unasked

PROGRAM = "llama-quantize"


@contextmanager
def served():
    yield pytest.importorskip("xllamacpp")


def asks():
    with served() as post:
        return post


def names_a_global():
    return shutil.which(PROGRAM)


def item(function, *fixtures):
    return SimpleNamespace(function=function, fixturenames=fixtures)


def test_a_judge_is_found_in_helpers_and_fixtures():
    assert judges_of(item(asks)) == ["xllamacpp"]
    assert judges_of(item(names_a_global)) == ["llama-quantize"]
    assert judges_of(item(lambda: 1, "go_judge", "tmp_path")) == ["go"]
    assert judges_of(item(None)) == []


def test_code_of_others_is_not_read():
    assert list(texts_of(shutil.which, set())) == []


def report(*judges):
    return SimpleNamespace(user_properties=[("judge", judge) for judge in judges])


def test_a_judge_that_was_skipped_or_never_asked_is_named():
    found = counted({"passed": [report("go"), report("go", "xllamacpp"), report()], "skipped": [report("xllamacpp")]})
    assert found == {"go": {"passed": 2}, "xllamacpp": {"passed": 1, "skipped": 1}}
    assert unasked(found, "") == [] and unasked(found, "go") == []
    assert unasked(found, "go, xllamacpp,node") == ["xllamacpp", "node"]
