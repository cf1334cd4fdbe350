"""tools/setup.sh beside a vendor's torch, as the container and bare metal run it; wheels are stubs with real names.

The vendor's environment holds what NVIDIA's PyTorch 25.11 was seen to hold: a pre-release of torch with a local
version, Triton, NumPy, older packages, and PIP_CONSTRAINT that names each exactly. The index offers newer ones.
"""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from support import stub_wheels

ROOT = Path(__file__).parents[2]
TORCH = "2.10.0a0+b558c986e8.nv25.11"
VENDOR = {
    "torch": (TORCH, ["sympy"], False),
    "triton": ("3.5.0", [], False),
    "torchvision": ("0.25.0a0+6ac54ef7", ["numpy", "torch"], False),
    "numpy": ("2.1.0", [], False),
    "safetensors": ("0.5.3", [], False),
    "sympy": ("1.13.3", [], True),
}
EXTRAS = "trl,bnb,gguf"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="setup.sh is for Linux, macOS and WSL"),
]


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(torch=None):
    """Our own, extras included; `torch` takes the place of the line about torch."""
    lines = [torch if torch and Requirement(line).name == "torch" else line for line in project()["dependencies"]]
    extras = project()["optional-dependencies"]
    return lines + [f"{line}; extra == '{extra}'" for extra in EXTRAS.split(",") for line in extras[extra]]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Newer builds of everything, and hasten itself with its real requirements."""
    folder = tmp_path_factory.mktemp("index")
    needs = {"accelerate": ["torch>=2.0"], "peft": ["torch>=1.13"], "bitsandbytes": ["torch>=2.3,<3", "numpy"]}
    needs |= {"transformers": ["safetensors>=0.8", "numpy>=1.17"], "torch": ["sympy>=1.13", "triton==3.9.0"]}
    newest = {"torch": "2.13.0", "triton": "3.9.0", "transformers": "5.24.0", "numpy": "2.5.5", "torchvision": "0.29.0"}
    names = {Requirement(line).name for line in requirements()} | newest.keys()
    for name in sorted(names):
        module = name.replace("-", "_")
        stub_wheels.wheel(folder, name, newest.get(name, "90.0"), requires=needs.get(name, ()), modules=[module])
    for version, torch in (("1.0", None), ("0.1", "torch>=2.10")):
        stub_wheels.wheel(folder, "hasten", version, requires=requirements(torch), modules=["hasten"])
    return folder


@pytest.fixture(scope="module")
def environment(index, tmp_path_factory):
    """pip sees the stub index alone; PIP_CONSTRAINT as the image sets it."""
    constraint = tmp_path_factory.mktemp("pip") / "constraint.txt"
    constraint.write_text("".join(f"{name}=={version}\n" for name, (version, _, _) in VENDOR.items()))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON", "VIRTUAL_ENV"))}
    return kept | {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_CONSTRAINT": str(constraint),
    }


def make_vendor(folder, environment):
    """A Python in which a vendor has installed torch."""
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    for name, (version, requires, pure) in VENDOR.items():
        stub_wheels.wheel(wheels, name, version, requires=requires, modules=[name], pure=pure)
    subprocess.run([sys.executable, "-m", "venv", folder / "python"], check=True)
    python = folder / "python" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "-q", "--no-deps", *wheels.glob("*.whl")]
    subprocess.run(pip, check=True, env=environment)
    return python


@pytest.fixture(scope="module")
def vendor(environment, tmp_path_factory):
    return make_vendor(tmp_path_factory.mktemp("vendor"), environment)


def setup(folder, environment, *arguments, **changes):
    command = [ROOT / "tools" / "setup.sh", folder, EXTRAS, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment | changes)


def version(python, module):
    program = f"import {module}; print({module}.__version__)"
    return subprocess.run([python, "-I", "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def files(python):
    """Everything in the folder of a Python's packages, with its time of change."""
    (site,) = (python.parents[1] / "lib").glob("python*/site-packages")
    return {path: path.stat().st_mtime_ns for path in site.rglob("*") if path.is_file() and path.suffix != ".pyc"}


@pytest.fixture(scope="module")
def installed(vendor, index, environment, tmp_path_factory):
    """A folder of its own on top of the vendor's Python, as in the container."""
    folder = tmp_path_factory.mktemp("on top") / "hasten"
    before = files(vendor)
    done = setup(folder, environment, "--from", str(index / "hasten-1.0-py3-none-any.whl"), PYTHON=str(vendor))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout, before


def test_a_vendors_torch_is_used_and_untouched(installed, vendor):
    folder, said, before = installed
    python = folder / "bin" / "python"
    assert files(vendor) == before
    assert {name: version(python, name) for name in ("torch", "triton", "torchvision", "numpy")} == {
        name: VENDOR[name][0] for name in ("torch", "triton", "torchvision", "numpy")
    }
    assert version(python, "hasten") == "1.0" and version(python, "bitsandbytes") == "90.0"
    # The image pins a safetensors that is too old for transformers: renewed in the new folder, not in the image.
    assert version(python, "safetensors") == "90.0" and version(vendor, "safetensors") == "0.5.3"
    assert f"using the torch {TORCH}" in said and "is put aside for this installation" in said
    assert f"kept: numpy 2.1.0, torch {TORCH}, torchvision 0.25.0a0+6ac54ef7, triton 3.5.0" in said


def test_a_second_run_does_nothing(installed, environment, vendor):
    folder, *_ = installed
    done = setup(folder, environment, PYTHON=str(vendor))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_torch_that_was_replaced_is_found(installed, index, environment):
    """The last step looks for itself, whatever pip was told."""
    folder, *_ = installed
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "-q", "--no-deps", "torch==2.13.0", "triton==3.9.0"]
    subprocess.run(pip, check=True, env=environment | {"PIP_CONSTRAINT": ""})
    command = [python, ROOT / "tools" / "keep.py", "check", folder / "kept.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", "torch", "triton"], check=True, env=environment)
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"error: torch changed from {TORCH} to 2.13.0" in done.stderr
    assert "error: triton changed from 3.5.0 to 3.9.0" in done.stderr
    assert again.returncode == 0, again.stderr


def test_a_module_that_another_package_hides_is_found(vendor, environment, tmp_path):
    """No version has changed, and still `import triton` is not the vendor's."""
    wheel = stub_wheels.wheel(tmp_path, "hasten", "2.0", requires=requirements(), modules=["hasten", "triton"])
    done = setup(tmp_path / "hasten", environment, "--from", str(wheel), PYTHON=str(vendor))
    assert done.returncode == 1
    assert "error: import triton gives" in done.stderr and "touched what had to stay" in done.stderr
    assert not list((tmp_path / "hasten").glob(".ready*"))


def test_the_folder_may_be_the_vendors_own(environment, index, tmp_path):
    """Without a folder of its own: a pure package is renewed in place, torch is not."""
    python = make_vendor(tmp_path, environment)
    done = setup(python.parents[1], environment, "--from", str(index / "hasten-1.0-py3-none-any.whl"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert version(python, "torch") == TORCH and version(python, "hasten") == "1.0"


def test_a_lower_bound_of_2_10_would_have_replaced_it(vendor, index, environment):
    """The trap that our own requirement steps around: to pip, 2.10.0a0 is older than 2.10."""
    wheel = index / "hasten-0.1-py3-none-any.whl"
    command = [vendor, "-m", "pip", "install", "--dry-run", str(wheel)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment | {"PIP_CONSTRAINT": ""}
    )
    assert "torch-2.13.0" in done.stdout
