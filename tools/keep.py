"""What an environment holds that an installation must leave alone: a vendor's torch and all that is built on it.

    python keep.py record FILE        look, and write down what must stay
    python keep.py constraints FILE   the same as lines for `pip install --constraint`
    python keep.py check FILE         look again; exit code 1 and one line each for what has changed

`torch` and `triton` stay; so do compiled packages that need them, NVIDIA's libraries, NumPy (compiled packages are
made for one of its versions), and whatever carries a vendor's mark in its version: a local part (`2.9.0+70f53666`) or
a pre-release (`2.10.0a0`). Pure Python packages may be renewed. Run by the Python of the environment in question; only
the standard library is needed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

ROOTS = {"torch": ("torch",), "triton": ("triton", "pytorch-triton", "pytorch-triton-xpu", "pytorch-triton-rocm")}
"""Module -> the names under which its builds are distributed."""
PREFIXES = ("nvidia-", "cuda-")
BUILT_ON_TORCH = {"apex", "flash-attn", "torchaudio", "torchvision", "transformer-engine"}
"""Built against torch, whatever their own metadata says."""
LARGE = 1 << 20
IMPORT_SECONDS = 600
_VERSION = re.compile(
    r"v?(\d+!)?\d+(\.\d+)*(?P<pre>[-_.]?(a|b|c|rc|alpha|beta|pre|preview)[-_.]?\d*)?"
    r"(-\d+|[-_.]?(post|rev|r)[-_.]?\d*)?(?P<dev>[-_.]?dev[-_.]?\d*)?(?P<local>\+[a-z0-9]+([-_.][a-z0-9]+)*)?",
    re.IGNORECASE | re.ASCII,
)
"""The versions that PEP 440 knows."""


@dataclass(frozen=True)
class Package:
    """One installed distribution."""

    name: str
    """Normalized as in PEP 503."""
    version: str
    needs: tuple[str, ...] = ()
    """Normalized names of what it requires without extras."""
    compiled: bool = False
    """Whether it is made for one platform."""
    modules: tuple[str, ...] = ()
    """What it lets one import."""
    place: str = ""
    digest: str = ""


def normalized(name: str) -> str:
    """A distribution's name as PEP 503 compares them."""
    return re.sub(r"[-_.]+", "-", name).lower()


def kept(installed: Iterable[Package]) -> list[Package]:
    """Those of the installed packages that must stay as they are, by name."""
    packages = {package.name: package for package in installed}
    roots = {name for names in ROOTS.values() for name in names} & packages.keys()
    above = _that_need(roots, packages)
    found = {
        name
        for name, package in packages.items()
        if name in roots | BUILT_ON_TORCH
        or name.startswith(PREFIXES)
        or _is_vendors(package.version)
        or (package.compiled and name in above)
    }
    if found and "numpy" in packages:
        found.add("numpy")
    return [packages[name] for name in sorted(found)]


def constraints(packages: Iterable[Package]) -> list[str]:
    """Lines for pip's ``--constraint`` that no other version of these packages fulfils.

    pip takes an installed pre-release for fulfilled only where it is named exactly, local part included. A version that
    is none by PEP 440 cannot be written; it is left to the check. Where a module comes from a distribution of another
    name (NVIDIA has shipped Triton as `pytorch-triton`), the usual name is forbidden: its files would overwrite it.
    """
    packages = list(packages)
    names = {package.name for package in packages}
    lines = [
        f"{package.name}=={package.version}"
        if _VERSION.fullmatch(package.version)
        else f"# {package.name} {package.version}: no version that pip can compare"
        for package in packages
    ]
    for module, (usual, *others) in ROOTS.items():
        for other in sorted(names & set(others)):
            if usual not in names:
                lines.append(f"{usual}<0  # the module {module} is {other}'s")
    return lines


def differences(before: Iterable[Package], after: Iterable[Package]) -> list[str]:
    """What became of the packages that had to stay: one sentence for each that did not."""
    now = {package.name: package for package in after}
    found = []
    for package in before:
        other = now.get(package.name)
        if other is None:
            found.append(f"{package.name} {package.version} is gone")
        elif other.version != package.version:
            found.append(f"{package.name} changed from {package.version} to {other.version}")
        elif other.place != package.place:
            found.append(f"{package.name} {package.version} is hidden by a copy in {other.place}")
        elif other.digest != package.digest:
            found.append(f"{package.name} {package.version} has other files than before")
    return found


def _is_vendors(version: str) -> bool:
    match = _VERSION.fullmatch(version)
    return match is None or any(match[part] for part in ("pre", "dev", "local"))


def _that_need(roots: set[str], packages: dict[str, Package]) -> set[str]:
    found = set(roots)
    while True:
        more = {name for name, package in packages.items() if name not in found and found & set(package.needs)}
        if not more:
            return found
        found |= more


def installed() -> list[Package]:
    """Every distribution this Python finds; of two with one name, the one that is imported."""
    packages: dict[str, Package] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name and normalized(name) not in packages:
            packages[normalized(name)] = _read(normalized(name), distribution)
    return list(packages.values())


def _read(name: str, distribution: importlib.metadata.Distribution) -> Package:
    needs = [
        normalized(match[0])
        for line in distribution.requires or ()
        if "extra ==" not in line and (match := re.match(r"[A-Za-z0-9._-]+", line))
    ]
    files = [str(file) for file in distribution.files or ()]
    wheel = distribution.read_text("WHEEL") or ""
    return Package(
        name=name,
        version=distribution.version,
        needs=tuple(sorted(set(needs))),
        compiled="root-is-purelib: false" in wheel.lower() or any(file.endswith(".so") for file in files),
        modules=tuple(
            sorted({file.split("/")[0] for file in files if re.fullmatch(r"[A-Za-z]\w*/__init__\.py", file)})
        ),
        place=os.path.realpath(str(distribution.locate_file(""))),
    )


def _with_digest(package: Package) -> Package:
    """The package with a digest of its files: content of the small ones, sizes of the large ones (torch: gigabytes)."""
    distribution = importlib.metadata.distribution(package.name)
    total = hashlib.sha256()
    for file in sorted(str(file) for file in distribution.files or () if not str(file).endswith(".pyc")):
        path = Path(str(distribution.locate_file(file)))
        size = path.stat().st_size if path.is_file() else -1
        content = path.read_bytes() if 0 <= size < LARGE else b""
        total.update(f"{file} {size} {hashlib.sha256(content).hexdigest()}\n".encode())
    return Package(**{**asdict(package), "digest": total.hexdigest()})


def imports(packages: Iterable[Package]) -> dict[str, str]:
    """Module -> the file that a fresh process imported for it, or ``failed: `` and the last line of what went wrong.

    NVIDIA's libraries are files for torch, not modules for people, and are not tried.
    """
    found = {}
    for module in sorted({m for package in packages if not package.name.startswith(PREFIXES) for m in package.modules}):
        command = [sys.executable, "-c", f"import os, {module}; print(os.path.realpath({module}.__file__))"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=IMPORT_SECONDS)
        except subprocess.TimeoutExpired:
            found[module] = f"failed: took more than {IMPORT_SECONDS} s"
            continue
        lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
        last = lines[-1] if lines else f"exit code {done.returncode}"
        found[module] = f"failed: {last}" if done.returncode else last
    return found


def import_differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """One sentence for each module that was imported before and is not now, or from another file.

    What failed before (a library that asks for a GPU while an image is built) is not held against the installation.
    """
    return [
        f"import {module} gives '{after.get(module)}', not '{file}' as before"
        for module, file in before.items()
        if not file.startswith("failed: ") and after.get(module) != file
    ]


def _load(path: Path) -> tuple[list[Package], dict[str, str]]:
    state = json.loads(path.read_text(encoding="utf-8"))
    packages = [Package(**{**entry, "needs": (), "modules": tuple(entry["modules"])}) for entry in state["packages"]]
    return packages, state["imports"]


def main(arguments: list[str]) -> int:
    """`record FILE`, `constraints FILE` or `check FILE`; the exit code."""
    command, path = arguments[0], Path(arguments[1])
    if command == "record":
        packages = [_with_digest(package) for package in kept(installed())]
        state = {"packages": [asdict(package) for package in packages], "imports": imports(packages)}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
        return 0
    before, imported = _load(path)
    if command == "constraints":
        print("\n".join(constraints(before)))
        return 0
    names = {package.name for package in before}
    found = differences(before, [_with_digest(package) for package in installed() if package.name in names])
    found += import_differences(imported, imports(before))
    for line in found:
        print(f"error: {line}", file=sys.stderr)
    if not found:
        print(f"kept: {', '.join(f'{package.name} {package.version}' for package in before) or 'nothing to keep'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
