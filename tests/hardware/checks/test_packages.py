"""Packages against the tested range."""

import pytest

from hasten.hardware.checks.packages import package_findings
from hasten.hardware.evidence import BitsandbytesFacts, Evidence, PythonFacts, Reading

REQUIREMENTS = ["torch>=2.10", "transformers>=5.0,<6", "peft>=0.18", 'trl>=0.26; extra == "trl"']
PYTHON = PythonFacts(version="3.12.3", virtual=True)


def said(packages, **more):
    findings = package_findings(Evidence(python=PYTHON, packages=packages, **more), REQUIREMENTS)
    return {(finding.state, finding.subject): finding for finding in findings}


@pytest.mark.parametrize(
    ("packages", "key", "remedy"),
    [
        ({"peft": ""}, ("fault", "peft"), "pip install 'peft>=0.18'"),
        ({"peft": "0.17.1"}, ("fault", "peft"), "pip install --upgrade 'peft>=0.18'"),
        ({"trl": "0.25"}, ("warning", "trl"), "pip install --upgrade 'trl>=0.26'"),
        ({"torch": "2.9.1+cu130"}, ("fault", "torch"), "--index-url"),
        ({"transformers": "git"}, ("warning", "transformers"), None),
    ],
)
def test_what_is_missing_or_old(packages, key, remedy):
    finding = said(packages)[key]
    assert remedy is None or remedy in (finding.remedy or "")
    assert not packages[key[1]] or packages[key[1]] in finding.found


def test_optional_packages_may_be_missing():
    assert ("fault", "trl") not in said({"trl": "", "peft": "0.20"})


def test_newer_ones_are_one_note():
    found = said({"transformers": "5.99.0", "peft": "9.9", "torch": "2.13.0"})
    assert "transformers 5.99.0" in found["note", "packages"].found and "peft 9.9" in found["note", "packages"].found
    assert found["ok", "packages"].found == "in the tested range: torch 2.13.0"


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        (BitsandbytesFacts(), "skipped"),
        (BitsandbytesFacts(version="0.50"), "skipped"),
        (BitsandbytesFacts(version="0.50", works=Reading("works on cuda")), "ok"),
        (BitsandbytesFacts(version="0.50", works=Reading("wrong by 1.0 on cuda")), "fault"),
        (BitsandbytesFacts(version="0.50", works=Reading("", "signal 11: ")), "fault"),
        (BitsandbytesFacts(version="0.50", works=Reading("works on")), "fault"),
    ],
)
def test_bitsandbytes(facts, state):
    assert (state, "bitsandbytes") in said({}, bitsandbytes=facts)
