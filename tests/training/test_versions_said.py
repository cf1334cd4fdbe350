"""One note about releases newer than tested: at use, in the run's header, and never at import."""

import io

from rich.console import Console

from hasten import schema
from hasten.hardware.tested import NEWEST
from hasten.training.config import RunConfig
from hasten.training.job import train


def test_a_run_says_it_once(tiny_values, tmp_path, monkeypatch):
    metadata = tmp_path / "newer" / "trl-99.0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: trl\nVersion: 99.0\n")
    monkeypatch.syspath_prepend(str(tmp_path / "newer"))
    said = io.StringIO()
    tiny_values["training"]["steps"] = 1
    finished = train(schema.build(RunConfig, tiny_values), console=Console(file=said, width=200))
    lines = [line for line in said.getvalue().splitlines() if "tested" in line]
    assert len(lines) == 1 and lines[0].endswith("newer than tested; going on")
    assert f"trl 99.0 (tested up to {NEWEST['trl']})" in lines[0]
    assert finished.adapter.is_dir()
