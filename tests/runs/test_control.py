import threading
from pathlib import Path

import pytest

from hasten.errors import RunError
from hasten.runs.control import REQUESTS, request, take
from hasten.runs.folder import RunFolder
from hasten.runs.status import StatusWriter


@pytest.fixture
def folder(tmp_path):
    made = RunFolder.create(tmp_path, "one")
    made.write_record({})
    return made


def test_requests_reach_the_job_once(folder):
    with StatusWriter(folder.status_file):
        assert take(folder) == set()
        request(folder, "stop")
        request(folder, "stop")
        request(folder, "save")
        assert take(folder) == {"stop", "save"}
        assert take(folder) == set()


def test_each_request_is_handed_to_one_taker(folder):
    taken: list[str] = []
    with StatusWriter(folder.status_file):
        for _ in range(30):
            request(folder, "save")
            takers = [threading.Thread(target=lambda: taken.extend(take(folder))) for _ in range(4)]
            for taker in takers:
                taker.start()
            for taker in takers:
                taker.join()
    assert taken == ["save"] * 30


def test_other_files_are_left_alone(folder):
    (folder.control / "shutdown").touch()
    (folder.control / "stop").mkdir()
    assert take(folder) == set()
    assert sorted(item.name for item in folder.control.iterdir()) == ["shutdown", "stop"]


def test_taking_without_a_control_folder_is_nothing(folder):
    folder.control.rmdir()
    assert take(folder) == set()
    with StatusWriter(folder.status_file):
        request(folder, "evaluate")
        assert take(folder) == {"evaluate"}


def test_only_a_living_job_can_be_asked(folder):
    with pytest.raises(RunError, match="not started"):
        request(folder, "stop")
    with StatusWriter(folder.status_file) as writer:
        writer.close("finished")
    with pytest.raises(RunError, match="finished"):
        request(folder, "stop")
    assert list(folder.control.iterdir()) == []


def test_unknown_requests_name_the_nearest(folder):
    with pytest.raises(RunError, match="Did you mean 'evaluate'"):
        request(folder, "evaluat")
    with pytest.raises(RunError, match=", ".join(REQUESTS)):
        request(folder, "../stop")


def test_a_taker_that_comes_second_gets_nothing(folder, monkeypatch):
    monkeypatch.setattr(Path, "is_file", lambda self: True)  # it saw the file that the first one has just deleted
    assert take(folder) == set()
