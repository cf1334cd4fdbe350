"""The sets of versions that the suite is run beside (tools/sets), and the command that does it."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
SETS = sorted((ROOT / "tools" / "sets").glob("*.txt"))


def pins(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    return {r.name: r for line in lines if line and not line.startswith("#") for r in [Requirement(line)]}


def test_three_sets():
    assert [path.stem for path in SETS] == ["middle", "newest", "playbook"]
    assert pins(ROOT / "tools" / "sets" / "newest.txt") == {}


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_pins_lie_in_the_range_that_the_project_states(path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ours = {}
    for line in [*project["dependencies"], *project["optional-dependencies"]["trl"]]:
        ours[Requirement(line).name] = Requirement(line).specifier
    for name, pin in pins(path).items():
        exact = [one.version for one in pin.specifier if one.operator == "=="]
        assert name not in ours or all(ours[name].contains(version) for version in exact)


def test_the_oldest_set_is_the_lower_bound():
    """What the project states as its oldest trl and datasets is what is tested."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest = pins(ROOT / "tools" / "sets" / "playbook.txt")
    assert project["optional-dependencies"]["trl"] == ["trl>=0.26"] and str(lowest["trl"].specifier) == "==0.26.1"
    assert "datasets>=4.3" in project["dependencies"] and str(lowest["datasets"].specifier) == "==4.3.0"


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
@pytest.mark.parametrize("arguments", [[], ["oldest"]])
def test_an_unknown_set_names_those_there_are(arguments):
    command = [ROOT / "tools" / "matrix.sh", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Known are: middle newest playbook" in done.stderr
