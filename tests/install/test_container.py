"""The container's files: linted where a linter is installed, and agreeing with the script whose tests run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from support import judges

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"


def dockerfile():
    text = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    return re.sub(r"\\\n\s*", "", "".join(line for line in text.splitlines(True) if not line.startswith("#")))


def instructions(name):
    return [line.removeprefix(f"{name} ") for line in dockerfile().splitlines() if line.startswith(f"{name} ")]


def service():
    return yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["services"]["hasten"]


def test_dockerfile_is_linted():
    program = judges.program("hadolint")
    done = subprocess.run([program, str(DOCKER / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_compose_file_is_valid():
    path = {"PYTHONPATH": str(judges.folder("check-jsonschema"))}
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    command.append(str(DOCKER / "compose.yaml"))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **path})
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_build_installs_with_the_tested_script_alone():
    install, *others = instructions("RUN")
    assert 'tools/setup.sh /opt/hasten "${EXTRAS}" --from "${SOURCE}"' in install
    assert not [line for line in others if "pip" in line]
    assert "EXTRAS=trl,bnb,gguf" in instructions("ARG")
    assert instructions("FROM") == ["${BASE}"]
    assert instructions("USER") == ["1000:1000"]


def test_the_base_image_is_the_same_everywhere():
    base = next(line for line in instructions("ARG") if line.startswith("BASE=")).removeprefix("BASE=")
    assert service()["build"]["args"]["BASE"] == f"${{BASE:-{base}}}"
    assert base in (DOCKER / "README.md").read_text(encoding="utf-8")


def test_compose_and_docker_run_say_the_same():
    readme = (DOCKER / "README.md").read_text(encoding="utf-8")
    limits = service()["ulimits"]
    assert limits == {"memlock": -1, "stack": 67108864}
    assert all(f"--ulimit {name}={value}" in readme for name, value in limits.items())
    assert service()["shm_size"] == "4gb" and "--shm-size 4g" in readme
    assert "ipc" not in service()
    for volume in service()["volumes"]:
        assert f":{volume['target']}" in readme


def test_caches_lie_under_the_home_that_is_a_volume():
    (environment,) = instructions("ENV")
    home = re.search(r"HOME=(\S+)", environment.replace("HF_HOME", ""))[1]
    targets = {volume["target"]: volume["type"] for volume in service()["volumes"]}
    assert targets[home] == "volume"
    assert f"HF_HOME={home}/.cache/huggingface" in environment
    assert targets[f"{home}/.cache/huggingface"] == "bind"


def test_what_the_build_reads_is_in_its_context():
    admitted = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert admitted == {"pyproject.toml", "README.md", "LICENSE", "src", "tools", "dist/*.whl"}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'readme = "README.md"' in project and 'license-files = ["LICENSE"]' in project
