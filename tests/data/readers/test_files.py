"""Bytes by place: for threads, forks and pickles, packed or not, and only of the file that was looked through."""

import errno
import gzip
import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hasten.data.readers import files
from hasten.data.readers.files import DataFile, Places, Spool, temporary_file
from hasten.errors import DataError, StorageError

CONTENT = bytes(range(256)) * 40


def made(folder, packed=False, content=CONTENT):
    path = folder / ("a.bin.gz" if packed else "a.bin")
    path.write_bytes(gzip.compress(content) if packed else content)
    return DataFile(path, "mine")


@pytest.mark.parametrize("packed", [False, True])
def test_content_in_order_and_by_place(tmp_path, packed):
    file = made(tmp_path, packed)
    with file.opened() as opened:
        assert opened.read() == CONTENT
    assert file.read(300, 310) == CONTENT[300:310]
    assert file.read(0, 5) == CONTENT[:5]
    file.close()
    assert file.read(10_000, 10_240) == CONTENT[10_000:]


def test_the_same_content_has_the_same_digest_whatever_it_is_called_and_however_packed(tmp_path):
    plain, packed = made(tmp_path), made(tmp_path, packed=True)
    assert plain.digest_as("text") == packed.digest_as("text")
    assert plain.digest_as("text") != plain.digest_as("JSON lines")
    (tmp_path / "b").mkdir()
    assert made(tmp_path / "b", content=CONTENT[:-1]).digest_as("text") != plain.digest_as("text")


@pytest.mark.parametrize("by_place", ["pread", "seek"])
def test_threads_do_not_disturb_each_other(tmp_path, monkeypatch, by_place):
    if by_place == "seek":  # as on Windows
        monkeypatch.delattr(os, "pread")
    file = made(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda start: file.read(start, start + 40), list(range(9000)) * 2))
    assert read == [CONTENT[start : start + 40] for start in list(range(9000)) * 2]


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
def test_a_forked_process_does_not_move_the_place_of_its_parent(tmp_path):
    file = made(tmp_path)
    assert file.read(0, 1) == CONTENT[:1]
    child = os.fork()
    if not child:
        os._exit(file.read(5000, 5100) != CONTENT[5000:5100])
    assert file.read(7, 9) == CONTENT[7:9]
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("packed", [False, True])
def test_a_pickle_reads_the_file_again(tmp_path, packed):
    file = made(tmp_path, packed)
    file.read(0, 1)
    assert pickle.loads(pickle.dumps(file)).read(256, 300) == CONTENT[:44]


def test_the_working_folder_may_change(tmp_path, monkeypatch):
    made(tmp_path)
    monkeypatch.chdir(tmp_path)
    file = DataFile(Path("a.bin"), "a.bin")
    monkeypatch.chdir(tmp_path.parent)
    assert file.read(1, 3) == CONTENT[1:3]


def test_a_file_that_was_changed_is_refused(tmp_path):
    file = made(tmp_path)
    assert file.read(0, 3) == CONTENT[:3]
    copy = pickle.loads(pickle.dumps(file))
    file.path.write_bytes(CONTENT + b"more")
    for read in (lambda: file.read(0, 3), lambda: copy.read(0, 3), lambda: file.digest_as("text")):
        with pytest.raises(DataError, match="mine: it was changed while it was in use.*Start again"):
            read()


def test_a_file_that_was_exchanged_is_refused_once_it_is_opened_again(tmp_path):
    file = made(tmp_path)
    assert file.read(0, 3) == CONTENT[:3]
    other = tmp_path / "other"
    other.write_bytes(b"something else")
    os.replace(other, file.path)
    assert file.read(3, 6) == CONTENT[3:6]  # still the one that was opened
    file.close()
    with pytest.raises(DataError, match="it was changed"):
        file.read(0, 3)


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    file = made(tmp_path)

    def refuse(self, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)  # root may read everything
    with pytest.raises(DataError, match=r"mine: it cannot be read \(Permission denied\).*Check its permissions"):
        file.read(0, 1)
    with pytest.raises(DataError, match="Permission denied"), file.opened():
        pass


@pytest.mark.parametrize(
    "damage",
    [lambda packed: packed[:-20], lambda packed: b"no gzip", lambda packed: packed[:40] + b"\xff" * 40 + packed[80:]],
)
def test_a_damaged_gz(tmp_path, damage):
    content = os.urandom(5000)
    file = made(tmp_path, packed=True, content=content)
    file.path.write_bytes(damage(gzip.compress(content)))
    with pytest.raises(DataError, match="mine: it is damaged .*Pack it again, or name the unpacked file"):
        file.read(0, 1)
    with pytest.raises(DataError, match="it is damaged"):
        file.digest_as("text")


def test_a_spool_gives_back_what_it_was_given_in_any_order():
    rows = [{"a": "x" * size, "b": [size, None, b"\0", "\ud800"]} for size in range(100)]
    spool = Spool(iter(rows))
    assert [spool[index] for index in reversed(range(100))] == rows[::-1]


def test_a_full_disk_is_named(monkeypatch):
    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            pass

    monkeypatch.setattr(files.tempfile, "TemporaryFile", Full)
    with pytest.raises(StorageError, match="no space left on the disk.*Free some space"):
        temporary_file([b"x"])


def test_a_full_disk_is_not_blamed_on_the_packed_file(tmp_path, monkeypatch):
    def full(pieces):
        raise StorageError("/tmp", "no space left on the disk", "Nothing was left half-written.", "Free some space.")

    monkeypatch.setattr(files, "temporary_file", full)
    with pytest.raises(StorageError, match="no space left"):
        made(tmp_path, packed=True).read(0, 1)


def test_files_are_closed_with_their_reader(tmp_path):
    places = Places(made(tmp_path).path.open("rb"))
    opened = places.file
    assert not opened.closed
    del places
    assert opened.closed
