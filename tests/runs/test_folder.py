import dataclasses
import errno
import json
import os
import threading
from pathlib import Path

import numpy
import pytest

from hasten.errors import RunError, StorageError
from hasten.runs.folder import RunFolder


def started(root: Path, name: str | None = None) -> RunFolder:
    folder = RunFolder.create(root, name)
    folder.write_record({"model": "tiny"})
    return folder


def test_record_keeps_the_writers_keys_and_adds_its_own(tmp_path):
    folder = RunFolder.create(tmp_path / "deep" / "runs", "first.try-1_a")
    folder.write_record({"model": "tiny", "config": {"path": Path("rows.jsonl")}, "name": "wrong", "schema_version": 9})
    record = RunFolder.open(folder.path).record()
    assert (record["name"], record["schema_version"], record["model"]) == ("first.try-1_a", 1, "tiny")
    assert record["config"] == {"path": "rows.jsonl"}
    assert record["created"].endswith("+00:00")


def test_dataclass_settings_are_stored_as_objects(tmp_path):
    @dataclasses.dataclass
    class Settings:
        rank: int = 8

    folder = RunFolder.create(tmp_path)
    folder.write_record({"config": Settings()})
    assert folder.record()["config"] == {"rank": 8}


def test_default_names_differ(tmp_path):
    assert len({RunFolder.create(tmp_path).name for _ in range(5)}) == 5


@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden", "..", "", "a b", "a\n", "last", "C:x", "é", "a" * 101])
def test_names_that_could_leave_the_root_or_confuse_are_refused(tmp_path, name):
    root = tmp_path / "runs"
    with pytest.raises(RunError, match="Choose another name"):
        RunFolder.create(root, name)
    assert not root.exists()


def test_an_existing_run_is_never_overwritten(tmp_path):
    started(tmp_path, "one")
    with pytest.raises(RunError, match="already exists"):
        RunFolder.create(tmp_path, "one")
    with pytest.raises(RunError, match="already holds a run"):
        RunFolder.create_at(tmp_path / "one")
    with pytest.raises(RunError, match="written once"):
        RunFolder.open(tmp_path / "one").write_record({})


def test_create_at_accepts_a_folder_with_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    folder = RunFolder.create_at(tmp_path)
    assert folder.path == tmp_path
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        RunFolder.create(tmp_path / "file", "run")
    with pytest.raises(StorageError):
        RunFolder.create_at(tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "holds no run.json"),
        ("{", "damaged"),
        ("[]", "not a JSON object"),
        ("{}", "schema_version is None"),
        ('{"schema_version": true}', "schema_version is True"),
        ('{"schema_version": 2}', "pip install --upgrade hasten"),
        ("[" * 100_000, "damaged"),
    ],
)
def test_open_says_what_is_wrong_with_a_record(tmp_path, text, message):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError, match=message):
        RunFolder.open(tmp_path)


def test_unknown_keys_are_kept_for_the_reader(tmp_path):
    (tmp_path / "run.json").write_text('{"schema_version": 1, "of_the_future": 1}')
    assert RunFolder.open(tmp_path).record()["of_the_future"] == 1


def test_values_that_are_not_finite_stay_valid_json(tmp_path):
    folder = started(tmp_path)
    folder.log_metrics({"step": 1, "loss": float("nan"), "grad_norm": float("inf"), "learning_rate": 0.5})
    line = (folder.path / "metrics.jsonl").read_text()
    strict = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert strict == {
        "step": 1, "loss": None, "grad_norm": None, "learning_rate": 0.5, "nonfinite": ["loss", "grad_norm"]
    }  # fmt: skip
    folder.write_result({"loss": {"last": float("nan")}})
    assert folder.result() == {"loss": {"last": None}}


def test_numpy_scalars_are_numbers(tmp_path):
    folder = started(tmp_path)
    folder.log_metrics({"step": numpy.int64(1), "loss": numpy.float32(0.5), "grad_norm": numpy.float32("nan")})
    assert folder.metrics() == [{"step": 1, "loss": 0.5, "grad_norm": None, "nonfinite": ["grad_norm"]}]


def test_an_unfinished_last_line_is_ignored_and_then_dropped(tmp_path):
    folder = started(tmp_path)
    folder.log_metrics({"step": 1, "loss": 2.0})
    path = folder.path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 2, "loss": 1.0}')  # whole, but nobody knows that without its line end
    assert [row["step"] for row in folder.metrics()] == [1]
    assert folder.loss_ends() == (2.0, 2.0)
    RunFolder.open(folder.path).log_metrics({"step": 2, "loss": 1.5})
    assert path.read_text().splitlines() == ['{"step": 1, "loss": 2.0}', '{"step": 2, "loss": 1.5}']


def test_an_unfinished_only_line_is_dropped(tmp_path):
    folder = started(tmp_path)
    path = folder.path / "metrics.jsonl"
    path.write_text('{"st' + "x" * 200_000)
    folder.log_metrics({"step": 1})
    assert path.read_text() == '{"step": 1}\n'


def test_damaged_lines_are_skipped(tmp_path):
    folder = started(tmp_path)
    (folder.path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\x00\x00\x00\n\xff\xfe\n[1]\n{"step": 2}\n')
    assert [row["step"] for row in folder.metrics()] == [1, 2]


def test_a_disk_that_takes_half_a_line_leaves_none_of_it(tmp_path, monkeypatch):
    folder = started(tmp_path)
    folder.log_metrics({"step": 1, "loss": 2.0})
    opened = Path.open

    class Half:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, data):
            return self.file.write(data[: len(data) // 2])

    monkeypatch.setattr(Path, "open", lambda self, *args, **more: Half(opened(self, *args, **more)))
    with pytest.raises(StorageError, match="no space left"):
        folder.log_metrics({"step": 2, "loss": 1.0})
    monkeypatch.undo()
    assert (folder.path / "metrics.jsonl").read_bytes() == b'{"step": 1, "loss": 2.0}\n'


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_a_storage_error(tmp_path):
    folder = started(tmp_path)
    (folder.path / "samples.jsonl").symlink_to("/dev/full")
    with pytest.raises(StorageError) as caught:
        folder.log_sample({"step": 1})
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC


def test_texts_with_odd_characters_come_back(tmp_path):
    folder = started(tmp_path)
    odd = "line\u2028separator \x85 \x0b 한국어 😀 \r\n"
    folder.log_sample({"step": 0, "when": "before", "prompt": odd, "answer": "cut \ud83d"})
    folder.log_sample({"step": 1, "when": "after", "prompt": odd, "answer": ""})
    samples = folder.samples()
    assert [sample["prompt"] for sample in samples] == [odd, odd]
    assert samples[0]["answer"] == "cut \\ud83d"


def test_metrics_follow_a_job_that_went_back(tmp_path):
    folder = started(tmp_path)
    for step in range(1, 6):
        folder.log_metrics({"step": step, "loss": float(step)})
    folder.log_metrics({"step": 4, "loss": 40.0})  # resumed from a checkpoint at step 3
    folder.log_metrics({"step": 4, "heldout_loss": 44.0})
    assert folder.metrics() == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": 3.0},
        {"step": 4, "loss": 40.0, "heldout_loss": 44.0},
    ]


def test_an_evaluation_does_not_go_back(tmp_path):
    folder = started(tmp_path)
    folder.log_metrics({"step": 0, "heldout_loss": 9.0})
    folder.log_metrics({"step": 1, "loss": 3.0})
    folder.log_metrics({"step": 2, "loss": 2.0})
    folder.log_metrics({"step": 0, "heldout_loss": 9.5})  # a resumed job measures the base model again
    folder.log_metrics({"step": 3, "loss": 1.0})
    assert folder.metrics() == [
        {"step": 0, "heldout_loss": 9.5},
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": 1.0},
    ]


def test_a_step_trained_again_keeps_nothing_of_its_first_time(tmp_path):
    folder = started(tmp_path)
    folder.log_metrics({"step": 1, "loss": float("nan"), "grad_norm": 1.0})
    folder.log_metrics({"step": 1, "heldout_loss": 4.0})
    folder.log_metrics({"step": 1, "loss": 1.0})
    assert folder.metrics() == [{"step": 1, "loss": 1.0}]


def test_the_lines_of_a_step_share_their_list_of_odd_values(tmp_path):
    folder = started(tmp_path)
    folder.log_metrics({"step": 1, "loss": 1.0, "grad_norm": float("nan"), "heldout_loss": float("nan")})
    folder.log_metrics({"step": 1, "heldout_loss": 2.0})
    assert folder.metrics() == [
        {"step": 1, "loss": 1.0, "grad_norm": None, "heldout_loss": 2.0, "nonfinite": ["grad_norm"]}
    ]


def test_loss_ends_of_a_long_file_and_of_a_diverged_run(tmp_path):
    folder = started(tmp_path)
    assert folder.loss_ends() == (None, None)
    folder.log_metrics({"step": 0, "heldout_loss": 9.0})
    for step in range(1, 4000):
        folder.log_metrics({"step": step, "loss": 5000.0 - step})
    assert (folder.path / "metrics.jsonl").stat().st_size > 65536
    assert folder.loss_ends() == (4999.0, 1001.0)
    folder.log_metrics({"step": 4000, "loss": float("inf")})
    assert folder.loss_ends() == (4999.0, None)


def test_lines_of_several_threads_stay_whole(tmp_path):
    folder = started(tmp_path)
    threads = [
        threading.Thread(target=lambda: [folder.log_sample({"answer": "x" * 500}) for _ in range(50)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(folder.samples()) == 200


def test_missing_files_are_nothing_and_damaged_ones_are_named(tmp_path):
    folder = started(tmp_path)
    assert (folder.metrics(), folder.samples(), folder.result(), folder.error(), folder.status()) == (
        [], [], None, None, None
    )  # fmt: skip
    (folder.path / "result.json").write_text("{")
    with pytest.raises(RunError, match=r"result\.json"):
        folder.result()
    folder.write_error("Traceback ...")
    assert folder.error() == "Traceback ..."


def test_paths_survive_a_change_of_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = started(Path("runs"), "one")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert folder.record()["name"] == "one"
    assert folder.checkpoints == tmp_path / "runs" / "one" / "checkpoints"
    assert folder.adapter.name == "adapter"
    assert folder.control.is_dir()
    assert folder.page.name == "report.html"
