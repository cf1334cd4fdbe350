"""Whether everything hasten needs has a wheel for Arm Linux (DGX Spark: Ubuntu 24.04, Python 3.12, glibc 2.39).

    python tools/arm_wheels.py [--python 3.12] [--glibc 2.39] [--json FILE]

Resolves the project and each of its extras as that machine would, without one and without downloading a package, and
prints a table: package, version, wheel. Exit code 1 where something has no wheel there. The resolver is uv
(`pip install uv`): pip can look for wheels of another platform, but judges conditions such as
`platform_machine == "aarch64"` by the machine that it runs on; so it asks for x86-64's CUDA libraries, not for Arm's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parents[1]
RUNTIME_EXTRAS = ("trl", "bnb", "gguf")
SECONDS = 600


def machine_tags(python: str, glibc: str) -> set[Tag]:
    """What an Arm machine of that Python and that glibc installs."""
    version = tuple(int(part) for part in python.split("."))
    newest = int(glibc.split(".")[1])
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(newest, 16, -1)]
    platforms += ["manylinux2014_aarch64", "linux_aarch64"]
    tags = set(cpython_tags(version, platforms=platforms))
    return tags | set(compatible_tags(version, interpreter=f"cp{version[0]}{version[1]}", platforms=platforms))


def chosen_wheel(names: list[str], tags: set[Tag]) -> str | None:
    """The first of the wheels that such a machine installs, made for it rather than for any; None where none is."""
    fitting = [name for name in names if parse_wheel_filename(name)[3] & tags]
    return min(fitting, key=lambda name: name.endswith("-any.whl"), default=None)


def wheels(lock: dict[str, object], tags: set[Tag]) -> list[tuple[str, str, str | None]]:
    """(package, version, wheel or None) of every package of a lock file (PEP 751)."""
    packages = lock["packages"]
    assert isinstance(packages, list)
    return [
        (
            package["name"],
            package.get("version", ""),
            chosen_wheel([wheel["url"].rsplit("/", 1)[-1] for wheel in package.get("wheels", [])], tags),
        )
        for package in packages
    ]


def resolve(extra: str | None, python: str, glibc: str) -> dict[str, object]:
    """The lock file of the project with one of its extras, for that machine.

    Raises:
        RuntimeError: uv is missing, or there is no solution in wheels; the text is uv's own.
    """
    command = [sys.executable, "-m", "uv", "pip", "compile", str(ROOT / "pyproject.toml"), "--no-config", "--quiet"]
    command += ["--python-platform", f"aarch64-manylinux_{glibc.replace('.', '_')}", "--python-version", python]
    command += ["--only-binary", ":all:", "--format", "pylock.toml"]
    command += ["--extra", extra] if extra else []
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return tomllib.loads(done.stdout)


def main(arguments: list[str]) -> int:
    """Print the table; 1 where a wheel is missing or an extra has no solution."""
    parser = argparse.ArgumentParser(description="Wheels for Arm Linux of everything hasten needs.")
    parser.add_argument("--python", default="3.12")
    parser.add_argument("--glibc", default="2.39")
    parser.add_argument("--json", type=Path, help="write the table there too")
    options = parser.parse_args(arguments)
    tags = machine_tags(options.python, options.glibc)
    rows: dict[str, tuple[str, str | None, str]] = {}
    missing = []
    for extra in (None, *RUNTIME_EXTRAS):
        label = f"hasten[{extra}]" if extra else "hasten"
        try:
            lock = resolve(extra, options.python, options.glibc)
        except RuntimeError as cause:
            missing.append(f"{label}: {cause}")
            continue
        for name, version, wheel in wheels(lock, tags):
            rows.setdefault(name, (version, wheel, label))
            if wheel is None:
                missing.append(f"{label}: {name} {version} has no wheel")
    for name, (version, wheel, label) in sorted(rows.items()):
        print(f"{name:26} {version:16} {label:14} {wheel or 'none'}")
    if options.json:
        table = {name: {"version": v, "wheel": w, "for": label} for name, (v, w, label) in sorted(rows.items())}
        options.json.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    for line in missing:
        print(f"error: {line}", file=sys.stderr)
    if not missing:
        print(f"{len(rows)} packages, all with wheels for aarch64, Python {options.python}, glibc {options.glibc}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
