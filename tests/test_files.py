"""Writing: the old content or the new, nothing between, and every trouble in one sentence."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest
from safetensors import SafetensorError

from hasten import files
from hasten.errors import StorageError

FULL = OSError(errno.ENOSPC, "No space left on device")


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refuse(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize(
    ("number", "value", "remedy"),
    [
        (errno.ENOSPC, "no space left on the disk", "Free some space or choose another folder."),
        (errno.EDQUOT, "no space left on the disk", "Free some space or choose another folder."),
        (errno.EACCES, "not writable by this user", "Change its permissions or choose another folder."),
        (errno.EROFS, "its file system is mounted read-only", "Mount it for writing or choose another folder."),
        (errno.ENOTDIR, "a file is in the way", "Move that file or choose another folder."),
        (errno.EISDIR, "a folder is in the way", "Move that folder or choose another folder."),
        (errno.EIO, f"could not be written ({os.strerror(errno.EIO)})", "Choose another folder."),
    ],
)
def test_what_the_system_says_in_our_words(number, value, remedy):
    with pytest.raises(StorageError) as caught, files.storing(Path("/x/y")):
        raise OSError(number, os.strerror(number))
    assert (caught.value.subject, caught.value.value, caught.value.remedy) == ("/x/y", value, remedy)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_full_disk_as_safetensors_says_it():
    with pytest.raises(StorageError, match="no space left on the disk"), files.storing(Path("x")):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(StorageError, match="could not be written .*header"), files.storing(Path("x")):
        raise SafetensorError("header too large for the address space")


def test_an_error_that_is_already_ours_passes_through():
    with pytest.raises(StorageError) as caught, files.storing(Path("outer")):
        raise files.storage_error(Path("inner"), FULL)
    assert caught.value.subject == "inner"


def test_text_is_replaced_in_utf8_with_plain_newlines(tmp_path):
    files.write_text(tmp_path / "a", "old")
    files.write_text(tmp_path / "a", "café\n")
    assert (tmp_path / "a").read_bytes() == "café\n".encode()
    assert listing(tmp_path) == ["a"]


@pytest.mark.parametrize("broken", ["os.fsync", "pathlib.Path.replace"])
def test_a_full_disk_leaves_the_old_text(tmp_path, monkeypatch, broken):
    files.write_text(tmp_path / "a", "old")
    monkeypatch.setattr(broken, refuse(FULL))
    with pytest.raises(StorageError, match="no space left.*Free some space"):
        files.write_text(tmp_path / "a", "new")
    monkeypatch.undo()
    assert (tmp_path / "a").read_text() == "old"
    assert listing(tmp_path) == ["a"]


def write_folder(path):
    with files.new_folder(path):
        pass


WRITERS = [lambda path: files.write_text(path, "x"), lambda path: files.write_json(path, 1), write_folder]


@pytest.mark.parametrize("write", WRITERS)
def test_a_file_where_a_folder_is_to_be(tmp_path, write):
    (tmp_path / "file").write_text("mine")
    for below in ("a", "deep/a"):
        with pytest.raises(StorageError, match="a file is in the way.*Move that file"):
            write(tmp_path / "file" / below)
    assert listing(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "mine"


def test_a_folder_where_a_file_is_to_be(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(StorageError, match="a folder is in the way.*Move that folder"):
        files.write_text(tmp_path / "a", "x")
    assert listing(tmp_path) == ["a"]


@pytest.mark.parametrize("write", WRITERS)
def test_what_cannot_be_tidied_up_does_not_hide_what_went_wrong(tmp_path, monkeypatch, write):
    away = OSError(errno.EIO, "Input/output error")
    monkeypatch.setattr(Path, "replace", refuse(FULL))
    monkeypatch.setattr(Path, "unlink", refuse(away))
    monkeypatch.setattr(files.shutil, "rmtree", refuse(away))
    with pytest.raises(StorageError, match="no space left"):
        write(tmp_path / "a")


def test_a_link_to_a_folder_is_replaced_and_what_it_shows_stays(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "kept").write_text("1")
    (tmp_path / "model").symlink_to(tmp_path / "theirs", target_is_directory=True)
    with files.new_folder(tmp_path / "model") as temporary:
        (temporary / "new").write_text("2")
    assert listing(tmp_path) == ["model", "model/new", "theirs", "theirs/kept"]


def test_writers_at_once_do_not_mix(tmp_path):
    texts = [str(number) * 20000 for number in range(8)]
    threads = [threading.Thread(target=files.write_text, args=(tmp_path / "a", text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_text() in texts
    assert listing(tmp_path) == ["a"]


def test_json_is_readable_and_survives_half_a_surrogate(tmp_path):
    value = {"é": "\ud800x", "list": [1, None]}
    files.write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "é" in text and "\\ud800x" in text
    assert json.loads(text) == value


def test_make_folder(tmp_path):
    made = files.make_folder(tmp_path / "ö ä" / "x")
    assert made.is_dir() and listing(made) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="a file is in the way.*Move that file"):
        files.make_folder(tmp_path / "file")
    with pytest.raises(StorageError, match="a file is in the way.*Move that file"):
        files.make_folder(tmp_path / "file" / "below")


def test_make_folder_proves_that_it_can_write(tmp_path, monkeypatch):
    monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse(PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(StorageError, match="not writable.*Change its permissions"):
        files.make_folder(tmp_path / "x")


def test_a_new_folder_appears_whole(tmp_path):
    with files.new_folder(tmp_path / "deep" / "model") as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "a").write_text("1")
        assert not (tmp_path / "deep" / "model").exists()
    assert listing(tmp_path) == ["deep", "deep/model", "deep/model/sub", "deep/model/sub/a"]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("error", [FULL, ValueError("a bug"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_leaves_what_was_there(tmp_path, before, error):
    if before:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "a").write_text("old")
    expected = StorageError if error is FULL else type(error)
    with pytest.raises(expected), files.new_folder(tmp_path / "model") as temporary:
        (temporary / "a").write_text("half")
        raise error
    assert listing(tmp_path) == (["model", "model/a"] if before else [])
    if before:
        assert (tmp_path / "model" / "a").read_text() == "old"


def test_an_old_folder_is_replaced_by_the_new(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("1")
    with files.new_folder(tmp_path / "model") as temporary:
        (temporary / "new").write_text("2")
        assert listing(tmp_path / "model") == ["old"]
    assert listing(tmp_path) == ["model", "model/new"]


def test_the_old_folder_comes_back_when_the_rename_fails(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("1")
    rename = Path.replace

    def second_fails(self, target):
        if self.name.endswith(".tmp") and (self / "new").exists():
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", second_fails)
    with pytest.raises(StorageError, match="Input/output"), files.new_folder(tmp_path / "model") as temporary:
        (temporary / "new").write_text("2")
    assert listing(tmp_path) == ["model", "model/old"]


def test_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    seen = []
    rename, fsync = Path.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (seen.append("flush"), fsync(number))[1])
    monkeypatch.setattr(Path, "replace", lambda self, target: (seen.append("rename"), rename(self, target))[1])
    with files.new_folder(tmp_path / "model") as temporary:
        (temporary / "a").write_text("1")
        (temporary / "b").write_text("2")
    assert seen == ["flush", "flush", "rename"]


def test_require_writable_makes_nothing(tmp_path, monkeypatch):
    files.require_writable(tmp_path / "a" / "b")
    assert listing(tmp_path) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="file' is a file.*Choose another folder"):
        files.require_writable(tmp_path / "file" / "runs")
    monkeypatch.setattr(os, "access", lambda *_: False)  # as root everything can be written
    with pytest.raises(StorageError, match="not writable.*Change its permissions"):
        files.require_writable(tmp_path / "a" / "b")


@pytest.mark.parametrize(
    ("need", "said"),
    [(3_000_000, "0.5 MB are free. It takes 3.0 MB."), (7 * 10**9, "0.0 GB are free. It takes 7.0 GB.")],
)
def test_a_disk_without_room_is_said_with_both_numbers(tmp_path, monkeypatch, need, said):
    usage = files.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: usage._replace(free=500_000))
    files.require_space(tmp_path / "a" / "b", 500_000, "It takes")
    with pytest.raises(StorageError) as caught:
        files.require_space(tmp_path / "a" / "b", need, "It takes")
    assert str(caught.value) == f"{tmp_path / 'a' / 'b'}: {said} Free some space or choose another folder."


def test_a_really_unwritable_folder(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="not writable"):
            files.make_folder(tmp_path / "x")
    finally:
        tmp_path.chmod(0o700)


def test_a_file_system_without_writing_is_said_to_be_one(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(files, "_read_only", lambda folder: True)
    with pytest.raises(StorageError, match="mounted read-only.*Mount it for writing"):
        files.require_writable(tmp_path / "a")


def test_a_really_full_disk():
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(StorageError, match="no space left"), files.storing(device), device.open("w") as file:
        file.write("x" * 100)
        file.flush()
