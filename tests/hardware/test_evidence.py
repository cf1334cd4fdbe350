"""The record: to JSON and back, and every way in which a file can be none."""

import json

import pytest

from hasten.errors import ConfigError
from hasten.hardware.evidence import DeviceFacts, Evidence, Reading, TorchFacts, TritonFacts, evidence_of, load_evidence

FULL = Evidence(
    source="a test",
    commands={"nvcc": Reading("release 13.0,", "")},
    torch=TorchFacts(
        version="2", devices=(DeviceFacts(name="X", major=12, minor=1, total_bytes=5),), archs=("sm_120",)
    ),
    triton=TritonFacts(version="3", kernel=Reading("", "exit code 1")),
    limits={"memlock": -1},
    hub=Reading("5 bytes"),
)


def test_there_and_back():
    assert evidence_of(json.loads(json.dumps(FULL.as_dict())), "x") == FULL
    assert evidence_of({}, "x") == Evidence()
    assert FULL.text("/not/there") == ""


@pytest.mark.parametrize(
    ("values", "subject", "rule", "remedy"),
    [
        ([], "x", "Here is an object.", "hasten doctor --record"),
        ({"torhc": {}}, "x: torhc", "Known: format", "'torch'"),
        ({"torch": {"available": "yes"}}, "x: torch.available", "Here is true or false.", "Record the machine again"),
        ({"limits": {"stack": True}}, "x: limits.stack", "Here is a whole number.", "Record"),
        ({"present": "/.dockerenv"}, "x: present", "Here is a list.", "Record"),
        ({"files": {"/proc/meminfo": "text"}}, "x: files./proc/meminfo", "Here is an object.", "Record"),
        ({"hub": 5}, "x: hub", "Here is an object.", "Record"),
        ({"torch": {"devices": [{"name": "X"}]}}, "x: torch.devices", "A device has it.", "Record"),
        ({"format": 2}, "x", "formats up to 1", "Update hasten."),
        ({"system": "y" * 99, "machine": ["z" * 99]}, "x: machine", "Here is text.", "Record"),
    ],
)
def test_what_is_no_record(values, subject, rule, remedy):
    with pytest.raises(ConfigError) as raised:
        evidence_of(values, "x")
    assert raised.value.subject == subject
    assert rule in raised.value.rule and remedy in raised.value.remedy
    assert len(raised.value.value) < 100


@pytest.mark.parametrize(
    ("content", "value"),
    [(b"{", "no JSON"), (b"\xff\xfe", "UTF-8"), (b"[" * 100_000, "no JSON"), (None, "No such file")],
)
def test_files_that_are_none(content, value, tmp_path):
    file = tmp_path / "machine.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        load_evidence(file)
    assert raised.value.subject == str(file)
    assert value in raised.value.value and "hasten doctor --record FILE" in raised.value.remedy
