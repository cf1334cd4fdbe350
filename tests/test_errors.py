"""Every error: four parts, an exit code, a standard category, and a way through pickle."""

import pickle

import pytest

from hasten import errors
from hasten.errors import ConfigError, ConfigErrors, HastenError, StorageError, did_you_mean, nearest

PARTS = ("lora.targets", "'v_prj' matches nothing", "Every target must match a module.", "Did you mean 'v_proj'?")
CATEGORIES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HastenError)]
STANDARD = {
    "ConfigError": ValueError,
    "ConfigErrors": ValueError,
    "DataError": ValueError,
    "ModelError": ValueError,
    "CapabilityError": NotImplementedError,
    "StorageError": OSError,
    "TrainingError": RuntimeError,
    "RunError": RuntimeError,
    "MissingPackageError": ImportError,
    "HastenError": Exception,
}


def make(kind):
    return ConfigErrors([ConfigError(*PARTS)]) if kind is ConfigErrors else kind(*PARTS)


@pytest.mark.parametrize("kind", CATEGORIES)
def test_an_error_is_its_standard_category_and_keeps_its_parts(kind):
    error = make(kind)
    assert isinstance(error, STANDARD[kind.__name__])
    assert (error.subject, error.value, error.rule, error.remedy) == PARTS
    assert str(error) == (
        "lora.targets: 'v_prj' matches nothing. Every target must match a module. Did you mean 'v_proj'?"
    )
    said = error.as_dict()
    assert said["error"] == kind.__name__ and said["value"] == PARTS[1] and said["message"] == str(error)


@pytest.mark.parametrize("kind", CATEGORIES)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickle(kind, protocol):
    error = make(kind)
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is kind
    assert str(again) == str(error)
    assert again.as_dict() == error.as_dict()


def test_exit_codes_tell_the_categories_apart():
    codes = [kind.exit_code for kind in CATEGORIES if kind is not ConfigErrors]
    assert len(set(codes)) == len(codes) and 0 not in codes
    assert ConfigErrors.exit_code == ConfigError.exit_code


def test_a_storage_error_does_not_pretend_to_have_an_error_number():
    assert StorageError(*PARTS).errno is None


def test_all_problems_are_shown_numbered_at_once():
    error = ConfigErrors([ConfigError("a", "1", "Rule a.", "Fix a."), ConfigError("b", "2", "Rule b.", "Fix b.")])
    assert str(error) == "2 settings are wrong:\n  1. a: 1. Rule a. Fix a.\n  2. b: 2. Rule b. Fix b."
    assert [problem["subject"] for problem in error.as_dict()["problems"]] == ["a", "b"]
    again = pickle.loads(pickle.dumps(error))
    assert [str(problem) for problem in again.problems] == [str(problem) for problem in error.problems]


def test_nearest_names():
    known = ["q_proj", "v_proj", "down_proj"]
    assert nearest("v_prj", known) == "v_proj"
    assert nearest("embedding", known) is None
    assert did_you_mean("v_prj", iter(known), "Choose one.") == "Did you mean 'v_proj'?"
    assert did_you_mean("embedding", iter(known), "Choose one.") == "Choose one."
