"""Go itself, where it is there."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from support import judges


@pytest.fixture(scope="session")
def go_judge(tmp_path_factory):
    """Renders cases as `judge.go` takes them with Go's own text/template."""
    if shutil.which("go") is None:
        judges.absent("go", "go is not there: `make judges` installs it")
    folder = tmp_path_factory.mktemp("go")
    source = shutil.copy(Path(__file__).with_name("judge.go"), folder)
    subprocess.run(["go", "build", "-o", "judge", source], cwd=folder, check=True, capture_output=True)

    def render(cases):
        given = json.dumps(cases)
        done = subprocess.run([folder / "judge"], input=given, capture_output=True, encoding="utf-8", check=True)
        return json.loads(done.stdout)

    return render
