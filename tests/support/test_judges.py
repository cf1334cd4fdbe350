"""What becomes of a test whose judge is missing."""

import pytest

from support import judges


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.setattr(judges, "_required", set())


def test_a_missing_judge_skips_or_fails():
    with pytest.raises(pytest.skip.Exception, match="go is not there"):
        judges.absent("go", "go is not there")
    judges.require("vllm, go")
    with pytest.raises(pytest.fail.Exception, match="go is required: go is not there"):
        judges.absent("go", "go is not there")


def test_a_module_is_handed_out_or_missed(monkeypatch):
    assert judges.package("json").dumps([]) == "[]"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(pytest.skip.Exception, match="xllamacpp is not installed: `make judges`"):
        judges.package("xllamacpp")


def test_an_unknown_judge_is_a_mistake():
    with pytest.raises(pytest.UsageError, match="lama; known: xllamacpp"):
        judges.require("lama")


def test_a_program_beside_python_and_a_folder_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    judges.require("hadolint,check-jsonschema")
    for ask, name in ((judges.program, "hadolint"), (judges.folder, "check-jsonschema")):
        with pytest.raises(pytest.fail.Exception, match=f"{name} is required.*`make judges` installs it"):
            ask(name)
    (tmp_path / "hadolint").touch(mode=0o755)
    (tmp_path / "judges" / "check-jsonschema").mkdir(parents=True)
    assert judges.program("hadolint") == str(tmp_path / "hadolint")
    assert judges.folder("check-jsonschema").name == "check-jsonschema"
