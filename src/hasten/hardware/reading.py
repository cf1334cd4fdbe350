"""Reading the machine: every program with a time limit, everything that may crash in a process of its own.

A reading that fails is kept as its failure, and nothing is raised: a broken machine is what a doctor is called for.
"""

from __future__ import annotations

import glob
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from hasten.hardware.child import MARK
from hasten.hardware.evidence import (
    BitsandbytesFacts,
    DiskFacts,
    Evidence,
    PythonFacts,
    Reading,
    TorchFacts,
    TritonFacts,
    evidence_of,
)
from hasten.hardware.memory import MEMINFO, OWN_GROUPS, cgroup_files
from hasten.hardware.tested import PACKAGES
from hasten.hardware.texts import last_line

COMMAND_S, CHILD_S, HUB_S = 10.0, 90.0, 8.0
"""Limits. A child imports torch, which takes a minute from a cold network disk."""

FILES = (
    "/proc/driver/nvidia/version",
    "/proc/version",
    MEMINFO,
    OWN_GROUPS,
    "/etc/os-release",
    "/etc/dgx-release",
)
MARKS = ("/.dockerenv", "/run/.containerenv", "/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/proc/driver/nvidia")
VARIABLES = (
    "CC", "CUDA_HOME", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES",
    "NVIDIA_PYTORCH_VERSION", "TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH", "BNB_CUDA_VERSION",
    "LD_LIBRARY_PATH", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "HF_HUB_OFFLINE", "WSL_DISTRO_NAME",
    "container",
)  # fmt: skip
GPU_QUERY = "name,driver_version,memory.total,memory.free,compute_cap,mig.mode.current"
HUB_FILE = ("hf-internal-testing/tiny-random-gpt2", "config.json")
"""A tiny file that has long been on the hub."""

_MOST_TEXT = 20_000
_MISSING_PROGRAM = "not found"
_TOOLKITS = "/usr/local/cuda*/bin/ptxas"


def read_evidence(cache: Path, working: Path, *, hub: bool = False) -> Evidence:
    """Read this machine; nothing is changed on it, and no network is used unless the hub is asked.

    Args:
        cache: the folder of downloads and prepared rows; need not exist.
        working: the folder that runs are written to.
        hub: whether to ask the hub for a tiny file's header.
    """
    commands = {
        "nvidia-smi": ["nvidia-smi"],
        "gpus": ["nvidia-smi", f"--query-gpu={GPU_QUERY}", "--format=csv"],
        "nvcc": ["nvcc", "--version"],
        "cc": [os.environ.get("CC") or shutil.which("gcc") or "clang", "--version"],
    }
    with ThreadPoolExecutor(max_workers=8) as pool:
        torch = pool.submit(_torch)
        four_bits = pool.submit(_bitsandbytes, torch)
        kernel = pool.submit(_triton, torch)
        ran = {name: pool.submit(run, words) for name, words in commands.items()}
        assemblers = {path: pool.submit(run, [path, "--version"]) for path in sorted(glob.glob(_TOOLKITS))}
        asked = pool.submit(_hub) if hub else None
        return Evidence(
            source="read on this machine",
            system=platform.system(),
            machine=platform.machine(),
            python=_python(),
            commands=_results(ran),
            files=_files(),
            present=tuple(path for path in MARKS if os.path.exists(path)),
            ptxas=_results(assemblers),
            environment={name: os.environ[name] for name in VARIABLES if name in os.environ},
            packages={name: installed(name) for name in PACKAGES},
            limits=_limits(),
            disks={"cache": disk(cache), "working folder": disk(working), "/dev/shm": disk(Path("/dev/shm"))},
            torch=torch.result(),
            triton=kernel.result(),
            bitsandbytes=four_bits.result(),
            hub=asked.result() if asked else None,
        )


def run(words: Sequence[str], limit_s: float = COMMAND_S, environment: Mapping[str, str] | None = None) -> Reading:
    """Run a program and keep what it prints, or why it did not.

    Args:
        words: the program and its arguments; no shell.
        limit_s: seconds; it is ended after them.
        environment: all of its variables; None for this process' own.
    """
    try:
        program = subprocess.Popen(
            list(words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=None if environment is None else dict(environment),
        )
    except FileNotFoundError:
        return Reading(failure=_MISSING_PROGRAM)
    except (OSError, ValueError) as cause:  # not executable, another machine's program
        return Reading(failure=f"cannot be run: {cause}")
    try:
        said, _ = program.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        program.kill()  # and not waited for: a program that waits for a broken driver cannot be ended
        return Reading(failure=f"no answer within {limit_s:g} s")
    text = _kept(said.decode("utf-8", errors="replace"))
    if program.returncode:
        ended = f"signal {-program.returncode}" if program.returncode < 0 else f"exit code {program.returncode}"
        return Reading(text=text, failure=ended)
    return Reading(text=text)


def installed(package: str) -> str:
    """A package's version, from its metadata; nothing where it is not installed."""
    try:
        return importlib.metadata.version(package) or ""
    except importlib.metadata.PackageNotFoundError:
        return ""


def disk(folder: Path) -> DiskFacts:
    """The file system that holds a folder, or that would hold it."""
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        usage = shutil.disk_usage(existing)
    except OSError as cause:
        return DiskFacts(failure=cause.strerror or str(cause))
    return DiskFacts(free_bytes=usage.free, total_bytes=usage.total)


def _results(running: Mapping[str, Future[Reading]]) -> dict[str, Reading]:
    return {name: future.result() for name, future in running.items()}


def _kept(text: str) -> str:
    # The beginning names the program, the end the error.
    half = _MOST_TEXT // 2
    return text if len(text) <= _MOST_TEXT else f"{text[:half]}\n...\n{text[-half:]}"


def _child(what: str, limit_s: float = CHILD_S) -> tuple[object, str]:
    """What a part of `child.py` prints, and why it did not."""
    # -P: nothing of the working folder is imported, however it is called.
    ran = run([sys.executable, "-P", str(Path(__file__).with_name("child.py")), what], limit_s)
    line = next((line for line in reversed(ran.text.splitlines()) if line.startswith(MARK)), None)
    if line is None:
        return None, f"{ran.failure or 'nothing was said'}: {last_line(ran.text)}"
    return json.loads(line.removeprefix(MARK)), ""


def _torch() -> TorchFacts:
    version = installed("torch")
    if not version:
        return TorchFacts()
    values, failure = _child("torch")
    if not isinstance(values, dict):
        return TorchFacts(version=version, failure=failure)
    return evidence_of({"torch": values}, "torch").torch


def _triton(torch: Future[TorchFacts]) -> TritonFacts:
    version = installed("triton") or installed("pytorch-triton")
    if not version:
        return TritonFacts()
    kernel = None
    if torch.result().available:
        script = Path(__file__).parents[1] / "kernels" / "trial.py"
        with tempfile.TemporaryDirectory(prefix="hasten-doctor-") as folder:
            # A cache of its own: what was compiled earlier proves nothing about today.
            kernel = run([sys.executable, "-P", str(script)], CHILD_S, {**os.environ, "TRITON_CACHE_DIR": folder})
    found = importlib.util.find_spec("triton")
    folders = list(found.submodule_search_locations or []) if found else []
    programs = [path for folder in folders for path in sorted(Path(folder, "backends/nvidia/bin").glob("ptxas*"))]
    return TritonFacts(
        version=version,
        bundled={program.stem: run([str(program), "--version"]) for program in programs},
        kernel=kernel,
    )


def _bitsandbytes(torch: Future[TorchFacts]) -> BitsandbytesFacts:
    version = installed("bitsandbytes")
    if not version:
        return BitsandbytesFacts()
    found = importlib.util.find_spec("bitsandbytes")
    folders = list(found.submodule_search_locations or []) if found else []
    libraries = sorted(
        path.stem.removeprefix("libbitsandbytes_") for folder in folders for path in Path(folder).glob("libbits*")
    )
    value, failure = _child("four-bits" if torch.result().available else "cpu-library")
    return BitsandbytesFacts(
        version=version,
        libraries=tuple(libraries),
        works=Reading(failure=failure) if failure else Reading(text=str(value)),
    )


def _python() -> PythonFacts:
    standard = Path(sysconfig.get_path("stdlib"))
    scheme = sysconfig.get_default_scheme()
    # Triton's own choice: Debian's scheme names a folder that has no headers.
    paths = sysconfig.get_paths("posix_prefix") if scheme == "posix_local" else sysconfig.get_paths()
    return PythonFacts(
        version=platform.python_version(),
        virtual=sys.prefix != sys.base_prefix or "CONDA_PREFIX" in os.environ,
        managed=(standard / "EXTERNALLY-MANAGED").is_file(),
        header=(Path(paths["include"]) / "Python.h").is_file(),
    )


def _files() -> dict[str, Reading]:
    found = {path: reading for path in FILES if (reading := _file(path)) is not None}
    paths = cgroup_files(found.get(OWN_GROUPS, Reading()).text)
    return found | {path: reading for path in paths if (reading := _file(path)) is not None}


def _file(path: str) -> Reading | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return Reading(text=file.read(_MOST_TEXT))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as cause:
        return Reading(failure=cause.strerror or str(cause))


def _limits() -> dict[str, int]:
    if sys.platform == "win32":
        return {}
    import resource

    kinds = {"memlock": resource.RLIMIT_MEMLOCK, "stack": resource.RLIMIT_STACK}
    soft = {name: resource.getrlimit(kind)[0] for name, kind in kinds.items()}
    return {name: -1 if value == resource.RLIM_INFINITY else value for name, value in soft.items()}


def _hub() -> Reading:
    """The header of a tiny file, through the hub's own client and its settings (mirror, proxy, token, offline)."""
    repository, name = HUB_FILE
    code = (
        "import sys, huggingface_hub as h; "
        "m = h.get_hf_file_metadata(h.hf_hub_url(sys.argv[1], sys.argv[2]), timeout=5); print(f'{m.size} bytes')"
    )
    return run([sys.executable, "-P", "-c", code, repository, name], HUB_S)
