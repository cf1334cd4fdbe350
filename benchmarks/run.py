"""Runs one benchmark case and writes its result: `python benchmarks/run.py cpu_demo [key=value ...]`."""

from __future__ import annotations

import datetime
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

from hasten.hardware.probe import probe
from hasten.training.record import versions

HERE = Path(__file__).parent


def processor() -> str:
    """The processor's name as Linux gives it."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def commit() -> str:
    """The commit that is checked out, marked when files differ from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def main() -> None:
    """Run the case named on the command line."""
    name, *options = sys.argv[1:]
    sys.path.insert(0, str(HERE))  # cases import each other's helpers
    given = dict(option.split("=") for option in options)
    revision = given.pop("commit", None) or commit()  # named where the code runs without its repository
    arguments = {key: int(value) if value.isdigit() else value for key, value in given.items()}
    figures = importlib.import_module(f"cases.{name}").run(**arguments)
    hardware = probe()
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    device = re.sub(r"\W+", "-", hardware.name if hardware.is_cuda else f"cpu{hardware.cores}")
    result = {
        "case": name,
        "date": today,
        "commit": revision,
        "hardware": {**hardware.as_dict(), "processor": processor()},
        "versions": versions(),
        **figures,
    }
    target = HERE / "results" / f"{name}_{device}_{today}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))
    print(f"written: {target}")


if __name__ == "__main__":
    main()
