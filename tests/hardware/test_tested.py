"""The tested range: its lower end from metadata, its upper end from the table."""

import string

from hypothesis import given
from hypothesis import strategies as st

from hasten.hardware.tested import NEEDED, NEWEST, newer_than_tested, oldest
from hasten.hardware.texts import version_of


def test_oldest():
    lines = ["torch>=2.10", "transformers<6,>=5.0", 'trl>=0.26; extra == "trl"', "hasten[trl]", "numpy", "a-b>=1.2.3"]
    assert oldest(lines) == {"torch": (2, 10), "transformers": (5, 0), "trl": (0, 26), "a_b": (1, 2, 3)}
    assert oldest([]) == {}


def test_the_table_and_the_metadata_agree():
    least = oldest()
    for name, version in NEWEST.items():
        newest = version_of(version)
        assert newest and len(newest) == 2
        assert name not in least or newest >= least[name][:2]
    assert set(NEEDED) <= set(NEWEST)


def test_only_what_is_newer_is_named():
    tested = {"trl": "1.16", "peft": "0.21", "torch": "2.13"}
    assert newer_than_tested({"trl": "1.16.9", "peft": "0.9.0", "torch": "2.13.0+cpu"}, tested) == []
    assert newer_than_tested({}, tested) == []
    assert newer_than_tested({"torch": "2.14.0a0+5f1.nv26.08", "trl": "1.17.0.dev0"}, tested) == [
        "trl 1.17.0.dev0 (tested up to 1.16)",
        "torch 2.14.0a0+5f1.nv26.08 (tested up to 2.13)",
    ]
    assert newer_than_tested({"trl": "99.0", "peft": "0.100"}, tested) == [
        "trl 99.0 (tested up to 1.16)",
        "peft 0.100 (tested up to 0.21)",
    ]
    assert newer_than_tested({"trl": "v2.0", "peft": "1", "torch": "git"}, tested) == ["trl v2.0 (tested up to 1.16)"]


@given(st.dictionaries(st.sampled_from(sorted(NEWEST)), st.text(string.printable, max_size=12)))
def test_no_version_text_is_a_fault(installed):
    assert {line.partition(" ")[0] for line in newer_than_tested(installed)} <= set(installed)
