"""Which storage was asked for."""

import pytest

from hasten.errors import ConfigError
from hasten.storage import asked_storage


def test_one_of_them():
    assert asked_storage() == "plain"
    assert asked_storage(load_in_4bit=True) == "nf4"
    assert asked_storage(load_in_8bit=True) == "int8"
    assert asked_storage(load_in_fp8=True) == "fp8"
    assert asked_storage(load_in_16bit=True) == "plain"


def test_two_are_refused():
    with pytest.raises(ConfigError, match="load_in_4bit.*as is load_in_fp8.*one way"):
        asked_storage(load_in_4bit=True, load_in_fp8=True)
