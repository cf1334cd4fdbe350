import html.parser
import json
import os
import re

import pytest

from hasten.errors import StorageError
from hasten.report.page import chart, write_page
from hasten.runs.folder import RunFolder
from hasten.runs.status import StatusWriter

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"' {{ 7 * 7 }}"
VOID = {"meta", "img", "br", "line", "circle", "polyline", "polygon"}


class Elements(html.parser.HTMLParser):
    """Collects elements and proves that they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in VOID:  # an SVG shape with a title inside
            return
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.seen if name == tag]


def full_run(root, steps: int = 30) -> RunFolder:
    folder = RunFolder.create(root, "one")
    folder.write_record(
        {
            "model": "tiny/model",
            "config": {"lora": {"rank": 16, "targets": ["q", "k"]}, "note": EVIL},
            "versions": {"torch": "2.13.0"},
            "hardware": {"gpu": "none"},
            "header": [
                {"part": "loss", "choice": "fused", "why": "fast", "fallback": False},
                {"part": "norm", "choice": "torch", "why": EVIL, "fallback": True},
            ],
        }
    )
    for step in range(1, steps + 1):
        row = {"step": step, "loss": 3.0 / step, "learning_rate": 1e-4, "supervised_tokens_per_s": 900.0 + step}
        if step % 10 == 0:
            row["heldout_loss"] = 1.5
        folder.log_metrics({**row, "peak_bytes": 2**30, "elapsed_s": float(step)})
    folder.log_sample({"step": 0, "when": "before", "prompt": "Who?", "answer": EVIL})
    folder.log_sample({"step": steps, "when": "after", "prompt": "Who?", "answer": "I am after."})
    folder.log_sample({"step": 5, "when": "step", "prompt": "Who?", "answer": "I am between."})
    return folder


def page_of(folder: RunFolder) -> tuple[str, Elements]:
    path = write_page(folder)
    assert path == folder.path / "report.html"
    text = path.read_text(encoding="utf-8")
    return text, Elements(text)


def test_everything_of_a_finished_run_is_there(tmp_path):
    folder = full_run(tmp_path)
    folder.write_result({"loss": {"last": 0.125}, "adapter": "adapter"})
    with StatusWriter(folder.status_file, total_steps=30) as writer:
        writer.set(step=30)
    text, elements = page_of(folder)
    assert len(elements.named("svg")) == 4
    assert len(elements.named("circle")) == 3
    for expected in (
        "finished", "step 30 of 30", "tiny/model", "lora.rank", "q, k", "2.13.0", "loss.last", "0.125", "I am after.",
        "I am between.", "3.0000 → 0.1000", "1.5000 → 1.5000", "1.00 GiB", "30s", "held-out", "Peak memory",
    ):  # fmt: skip
        assert expected in elements.text, expected
    assert elements.text.count("fallback") == text.count("fallback</span>") + text.count(".fallback")


def test_untrusted_text_is_only_text(tmp_path):
    text, elements = page_of(full_run(tmp_path))
    assert elements.named("script") == []
    assert elements.named("img") == []
    assert "<script" not in text
    assert elements.text.count(EVIL) == 3  # the sample, the setting and the reason: as they are, not evaluated
    assert not any(name.startswith("on") for _, attributes in elements.seen for name in attributes)


def test_the_page_refers_to_nothing_outside(tmp_path):
    text, elements = page_of(full_run(tmp_path))
    assert not re.search(r"https?://|//\w|@import|url\(", text)
    assert not any(name in ("src", "href") for _, attributes in elements.seen for name in attributes)
    assert any("default-src 'none'" in (meta.get("content") or "") for meta in elements.named("meta"))


def test_a_run_that_has_only_started(tmp_path):
    folder = RunFolder.create(tmp_path)
    folder.write_record({})
    _, elements = page_of(folder)
    assert "No step has been logged yet" in elements.text
    assert "unknown" in elements.text


def test_a_failed_run_shows_its_error(tmp_path):
    folder = full_run(tmp_path)
    folder.write_error(f"Traceback\n{EVIL}")
    with StatusWriter(folder.status_file) as writer:
        writer.close("failed", "loss is not finite")
    _, elements = page_of(folder)
    assert "failed" in elements.text
    assert "loss is not finite" in elements.text
    assert "Traceback" in elements.text


def test_a_dead_run_is_called_dead(tmp_path):
    folder = full_run(tmp_path)
    writer = StatusWriter(folder.status_file)
    status = json.loads(folder.status_file.read_text())
    writer.close("finished")
    folder.status_file.write_text(json.dumps({**status, "state": "running", "pid_started": 1.0}))
    text, _ = page_of(folder)
    assert '<span class="badge dead">dead</span>' in text


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path):
    folder = full_run(tmp_path)
    folder.status_file.write_text("{")
    (folder.path / "result.json").write_text("[]")
    _, elements = page_of(folder)
    assert "status.json: damaged" in elements.text
    assert "result.json: damaged" in elements.text
    assert len(elements.named("svg")) == 4


def test_odd_but_valid_contents_do_no_harm(tmp_path):
    folder = RunFolder.create(tmp_path)
    folder.write_record({"header": {"part": 1}, "config": [], "versions": "text", "model": ["x"], "hasten": None})
    lines = [
        {"step": 1, "loss": 10**400}, {"step": 2, "loss": "high"}, {"step": "three", "loss": 1}, {"loss": 1},
        {"step": 4, "loss": 1e300, "peak_bytes": True, "elapsed_s": None}, {"step": 5, "loss": 2.0},
        {"step": 6, "loss": 2.0000000000000004, "learning_rate": 5e-324}, {"step": 10**400, "loss": 1.0},
    ]  # fmt: skip
    (folder.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder.path / "samples.jsonl").write_text('{"prompt": 5, "answer": {"a": 1}}\n{"answer": "\\ud83d"}\n')
    _, elements = page_of(folder)
    assert len(elements.named("svg")) >= 1


def test_a_page_that_cannot_be_written_is_a_storage_error(tmp_path, monkeypatch):
    folder = full_run(tmp_path)

    def replace(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(StorageError, match="no space left"):
        write_page(folder)


def test_a_long_curve_is_binned_with_its_extremes():
    made = chart("Loss", "", [(step, 5.0 if step == 500 else 1.0) for step in range(1, 1001)], from_zero=False)
    assert made is not None
    assert len(made.lines[0].split()) == 334
    assert made.notes == ["line: means of up to 3 steps; band: their lowest and highest"]
    heights = [float(point.split(",")[1]) for point in made.bands[0].split()]
    mean_heights = [float(point.split(",")[1]) for point in made.lines[0].split()]
    assert min(heights) == made.y_ticks[-1].at < min(mean_heights)


def test_gaps_split_the_curve_and_are_counted():
    made = chart("Loss", "", [(1, 1.0), (2, None), (3, 2.0)])
    assert made is not None
    assert len(made.lines) == 2
    assert made.notes == ["1 value not finite, left out"]
    assert chart("Loss", "", [(1, None)]) is None


@pytest.mark.parametrize("values", [[0.0], [1.0], [1e-5, 2e-5], [-3.0, 7.0], [999.0, 1001.0], [0.0, 1e6]])
def test_ticks_are_labelled_and_enclose_the_values(values):
    made = chart("x", "", list(enumerate(values, 1)), from_zero=False)
    assert made is not None
    labels = [float(tick.label.replace(",", "")) for tick in made.y_ticks]
    assert labels == sorted(set(labels))
    assert labels[0] <= min(values) <= max(values) <= labels[-1]
    assert 2 <= len(labels) <= 8
    assert made.x_ticks
    for place in " ".join(made.lines).split():
        x, y = (float(number) for number in place.split(","))
        assert made.left <= x <= made.right
        assert made.top <= y <= made.bottom


def test_sizes_are_drawn_from_zero():
    made = chart("Peak memory", "GiB", [(1, 10.0), (2, 11.0)])
    assert made is not None
    assert made.y_ticks[0].label == "0"
