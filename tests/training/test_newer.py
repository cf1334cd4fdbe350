"""One note about releases newer than tested: at use, in the run's header, and never at import."""

import io
import string

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hasten import schema
from hasten.hardware.tested import NEWEST
from hasten.training.config import RunConfig
from hasten.training.job import train
from hasten.training.newer import newer_than_tested, note


def test_only_what_is_newer_is_named():
    tested = {"trl": "1.16", "peft": "0.21", "torch": "2.13"}
    assert newer_than_tested({"trl": "1.16.9", "peft": "0.9.0", "torch": "2.13.0+cpu"}, tested) == {}
    assert newer_than_tested({}, tested) == {}
    assert newer_than_tested({"trl": "1.17.0.dev0", "torch": "2.14.0a0+5f1.nv26.08"}, tested) == {
        "trl": "1.17.0.dev0 (tested: 1.16)",
        "torch": "2.14.0a0+5f1.nv26.08 (tested: 2.13)",
    }
    assert note({"trl": "99.0", "peft": "0.100"}, tested) == "trl 99.0 (tested: 1.16), peft 0.100 (tested: 0.21)"
    assert note({"trl": "1.16"}, tested) == ""


@given(st.dictionaries(st.sampled_from(sorted(NEWEST)), st.text(string.printable, max_size=12)))
def test_no_version_text_is_a_fault(installed):
    assert set(newer_than_tested(installed)) <= set(installed)


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
    assert f"trl 99.0 (tested: {NEWEST['trl']})" in lines[0]
    assert finished.adapter.is_dir()
