"""Running an unmodified script in this process, with hasten where it expects unsloth."""

from __future__ import annotations

import runpy
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hasten.compat.notes import say
from hasten.compat.stand_ins import stand_ins
from hasten.errors import ConfigError, HastenError, did_you_mean


@dataclass(frozen=True)
class ScriptResult:
    """How a script ended."""

    script: Path
    exit_code: int
    seconds: float
    metrics: dict[str, float] | None
    """Final metrics of its last training, if there was one."""

    def as_dict(self) -> dict[str, object]:
        """Plain values for ``--json``."""
        return {
            "ok": self.exit_code == 0,
            "script": str(self.script),
            "exit_code": self.exit_code,
            "seconds": round(self.seconds, 3),
            "metrics": self.metrics,
        }


def run_script(script: Path, arguments: Sequence[str] = ()) -> ScriptResult:
    """Run a script as ``python script.py arguments`` would, with hasten standing in for unsloth.

    Args:
        script: the file.
        arguments: what it sees in ``sys.argv[1:]``.

    Raises:
        ConfigError: there is no such file.
        BaseException: whatever the script raises, except `SystemExit`, which becomes the exit code.
    """
    if not script.is_file():
        names = [entry.name for entry in script.parent.iterdir()] if script.parent.is_dir() else []
        remedy = did_you_mean(script.name, names, "Check the spelling and the working folder.")
        raise ConfigError(str(script), "no such file", "`hasten run` takes a Python script.", remedy)
    started = time.perf_counter()
    _forget_metrics()
    code = 0
    with stand_ins(), _as_program(script, arguments):
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            code = _exit_code(end)
        except HastenError as error:
            say(f"raised in {_where(error, script)}")
            raise
    return ScriptResult(script, code, time.perf_counter() - started, _metrics())


@contextmanager
def _as_program(script: Path, arguments: Sequence[str]) -> Iterator[None]:
    argv, path = sys.argv, list(sys.path)
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.resolve().parent))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path


def _exit_code(end: SystemExit) -> int:
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code
    sys.stderr.write(f"{end.code}\n")
    return 1


def _where(error: HastenError, script: Path) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(script)]
    return f"{script}, line {lines[-1]}" if lines else str(script)


def _forget_metrics() -> None:
    module = sys.modules.get("hasten.compat.trainer")
    if module is not None:
        module.SFTTrainer.last_metrics = None


def _metrics() -> dict[str, float] | None:
    module = sys.modules.get("hasten.compat.trainer")
    return module.SFTTrainer.last_metrics if module is not None else None
