"""A case of several arms: each in a process of its own, checked against each other, in one table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

HERE = Path(__file__).parent
# bfloat16 arms round differently at every product: their losses agree to about 2^-8 of themselves at worst.
LOSS_TOLERANCE = 2.0**-8
NORM_TOLERANCE = 2.0**-5
TOLERANCES = {"loss_first": LOSS_TOLERANCE, "grad_norm": NORM_TOLERANCE}


def run_arms(
    arms: list[str],
    base: dict[str, Any],
    *,
    program: str = "step_arm.py",
    tolerances: dict[str, float] = TOLERANCES,
    private: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure the arms; one that fails is reported with its last line, not left out.

    Args:
        arms: names; the first that runs is what the others are compared with.
        base: the spec without the arm.
        program: what runs an arm.
        tolerances: by how much of itself a figure may differ between arms.
        private: what the program is told beside, and the result is not (temporary folders).

    Raises:
        SystemExit: two arms compute different things.
    """
    done: dict[str, Any] = {}
    for arm in arms:
        done[arm] = _one(program, {**base, **(private or {}), "arm": arm})
        print(arm, {k: v for k, v in done[arm].items() if k != "profile"}, file=sys.stderr, flush=True)
    ran = {arm: result for arm, result in done.items() if "error" not in result}
    if ran:
        first = next(iter(ran.values()))
        for arm, result in ran.items():
            for key, tolerance in tolerances.items():
                if not abs(result[key] - first[key]) <= tolerance * abs(first[key]):
                    raise SystemExit(f"{arm}: {key} {result[key]} differs from {first[key]}: not the same computation")
    table(ran)
    return {"spec": base, "arms": done}


def table(arms: dict[str, Any]) -> None:
    """One line per arm."""
    wanted = ("real_tok_s", "step_ms_p50", "running_tok_s", "supervised_tok_s", "peak_allocated_gb", "first_step_s")
    columns = [name for name in wanted if any(name in result for result in arms.values())]
    print(f"{'arm':20s}" + "".join(f"{name:>18s}" for name in [*columns, "loss_first", "grad_norm"]), file=sys.stderr)
    for arm, r in arms.items():
        figures = "".join(f"{r.get(name, 0):18.1f}" for name in columns)
        print(f"{arm:20s}{figures}{r['loss_first']:18.4f}{r['grad_norm']:18.4f}", file=sys.stderr)
        traced = r.get("profile")
        if traced:
            words = ("busy_ms", "idle_ms", "span_ms", "launches")
            print("    " + ", ".join(f"{word} {traced[word]:.1f}" for word in words), file=sys.stderr)
            for kernel in traced["kernels"]:
                print(f"    {kernel['ms']:9.2f} ms {kernel['calls']:6d} x {kernel['name']}", file=sys.stderr)
            for gap in traced["gaps"]:
                print(
                    f"    idle {gap['us']:7.0f} us at {gap['at']:.2f}: {gap['after']} | {gap['before']}",
                    file=sys.stderr,
                )


def _one(program: str, spec: dict[str, Any]) -> dict[str, Any]:
    with NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        json.dump(spec, file)
        file.flush()
        command = [sys.executable, str(HERE / program), file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1][-400:]}
    return json.loads(done.stdout.strip().splitlines()[-1])
