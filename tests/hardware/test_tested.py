"""The tested range: its lower end from metadata, its upper end from the table."""

from hasten.hardware.tested import NEEDED, NEWEST, oldest
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
