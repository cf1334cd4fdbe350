"""What a real llama.cpp predicts from a GGUF file, against what was meant.

It runs in a process of its own, through the package `xllamacpp` where that is installed: a native library may crash or
hang, and an export must not.

It is asked for the next token after some beginnings of the text, and names its first `_TOP` tokens with their
log-probabilities (of all tokens, not of those that a sampler leaves). With the rest of the vocabulary as one more
token, both predictions are distributions over as many outcomes, and the divergence of two distributions whose outcomes
were put together is never larger than before (the log sum inequality). So the bound for whole vocabularies holds, and
where llama.cpp names the whole vocabulary, it is that divergence.

llama.cpp rounds more than the file does: it also brings what each matrix is multiplied with into the matrix' own kind,
16 bits or blocks of 8. `ARITHMETIC` is that error, relative to the norm, spread evenly over a step: of 16 bits, half a
step over sqrt(3); of blocks of n values, whose steps are 1/127 of the largest, sqrt(n / 12) / 127 in the worst block,
which has one value of that size. Errors of weights and of what they are multiplied with are independent: their squares
add.

The mean of the places is compared; of models with experts, their median. Where a router is nearly undecided the least
rounding sends a token to another expert, and there predictions are another model's, by no square of any error. A file
that is wrong is wrong at most places.
"""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from importlib import metadata
from math import hypot, log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from hasten.export.verify import logits
from hasten.export.verify.checks import Check
from hasten.export.verify.weights import BOUNDS
from hasten.files import native_path
from hasten.hardware.memory import budget, read_cgroup, read_meminfo
from hasten.hardware.probe import usable_cores

PACKAGE = "xllamacpp"
NAME = "logits (llama.cpp)"
_CHILD = Path(__file__).with_name("llama_cpp_child.py")
_TOP, _PLACES = 256, 16
_LIMIT_S, _LIMIT_S_PER_GB = 60.0, 240.0
_SMALL = 2**24
"""Bytes of a file whose matrices are done before a second thread is awake."""
_NOT_THE_FILE = re.compile(
    r"unknown model architecture: "
    r"|unable to allocate \S+ buffer$|failed to allocate (\S+ )?buffer\b|(std::)?bad_alloc$"
    r"|mmap failed: |.*: Cannot allocate memory$"
)
"""Why a whole file is not loaded: a llama.cpp that is too old, or what the system did not give. The whole reason is
compared, since names of tensors and folders stand in others."""
_EIGHT, _SUPER = sqrt(32 / 12) / 127, sqrt(256 / 12) / 127
ARITHMETIC: dict[str, float] = {
    "F32": 0.0, "F16": BOUNDS["F16"] / sqrt(3), "BF16": BOUNDS["BF16"] / sqrt(3),
    **dict.fromkeys(("Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1", "IQ4_NL"), _EIGHT),
    **dict.fromkeys(("Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "IQ4_XS"), _SUPER),
}  # fmt: skip
"""What llama.cpp's CPU code loses of the values that a matrix of a type is multiplied with."""


def version() -> str | None:
    """The binding's, or None where there is none."""
    if importlib.util.find_spec(PACKAGE) is None:
        return None
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:  # found beside, not installed
        return "of unknown version"


def bound(error: float, kinds: Collection[str]) -> float:
    """Nats per token that llama.cpp may be away from what was meant.

    Args:
        error: of all weights, relative to their norm.
        kinds: the file's types, by GGUF's names.
    """
    return logits.bound(hypot(error, max((ARITHMETIC[kind] for kind in kinds), default=0.0)))


def compare(
    target: str, file: Path, ids: Sequence[int], meant_TV: torch.Tensor, most: float, *, experts: bool = False
) -> Check:
    """Let llama.cpp predict from a file; `skipped` with the reason where it cannot be asked.

    Args:
        target: for the check's line.
        file: a GGUF model.
        ids: of the text.
        meant_TV: log-probabilities after each of them, from `hasten.export.verify.logits.predictions`.
        most: nats per token, from `bound`.
        experts: whether the model has some.
    """
    found = version()
    if found is None:
        return Check(target, NAME, "skipped", f"no llama.cpp here (pip install {PACKAGE})")
    by, size = f"{PACKAGE} {found}", file.stat().st_size
    free = budget("cpu", meminfo=read_meminfo(), cgroup=read_cgroup()).bytes
    if 1.3 * size > free:
        return Check(
            target, NAME, "skipped", f"{size / 2**30:.1f} GiB and more are needed, {free / 2**30:.1f} are free"
        )
    lengths = _lengths(len(ids))
    if not lengths or not sys.executable:
        return Check(target, NAME, "skipped", "the text is too short" if sys.executable else "no Python to run it in")
    limit_s = _LIMIT_S + _LIMIT_S_PER_GB * size / 1e9
    try:
        with native_path(file.absolute().parent) as place:
            asked = {"file": str(place / file.name), "ids": list(ids), "lengths": lengths, "top": _TOP,
                     "threads": 1 if size < _SMALL else _idle_cores(), "limit_s": limit_s + 10.0}  # fmt: skip
            done = subprocess.run(  # its input is ours; -P: the modules beside it are no program's
                [sys.executable, "-P", str(_CHILD)], input=json.dumps(asked), capture_output=True, check=False,
                encoding="utf-8", errors="replace", timeout=limit_s,
            )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Check(target, NAME, "skipped", f"{by} gave no answer in {limit_s:.0f} s")
    except OSError as cause:
        return Check(target, NAME, "skipped", f"{by} could not be started ({cause.strerror or cause})")
    if done.returncode:
        return _ended(target, by, done.returncode, done.stderr)
    said: dict[str, Any] = json.loads(done.stdout)
    if "refused" in said:
        return _refused(target, by, done.stderr, str(said["refused"]))
    if "error" in said:
        return Check(target, NAME, "wrong", f"{by} loads it and does not answer: {said['error']}")
    return _compared(target, by, lengths, said["top"], meant_TV, most, experts)


def divergence(meant_V: torch.Tensor, top: Sequence[Sequence[float]]) -> float:
    """Nats between a prediction that was meant and one of which some tokens are known; the rest is one outcome.

    Args:
        meant_V: log-probabilities.
        top: pairs of an id and its log-probability, of different tokens.
    """
    ids = torch.tensor([int(token) for token, _ in top])
    # llama.cpp writes NaN as null.
    found_K = torch.tensor([float("nan") if value is None else value for _, value in top], dtype=torch.float64)
    meant_K = meant_V.double()[ids]
    nats = float((meant_K.exp() * (meant_K - found_K)).sum())
    if len(top) < len(meant_V):
        # Below the rounding of float32, in which llama.cpp adds, what is left is not known.
        least = len(top) * 2.0**-24
        meant, found = (max(1.0 - float(each.exp().sum()), least) for each in (meant_K, found_K))
        nats += meant * log(meant / found)
    return nats


def _compared(
    target: str,
    by: str,
    lengths: Sequence[int],
    tops: Sequence[Any],
    meant_TV: torch.Tensor,
    most: float,
    experts: bool,
) -> Check:
    if len(tops) != len(lengths) or not all(tops):
        return Check(target, NAME, "skipped", f"{by} answered nothing that can be read")
    rows = meant_TV.shape[-1]
    odd = next((int(token) for top in tops for token, _ in top if not 0 <= token < rows), None)
    if odd is not None:
        return Check(target, NAME, "wrong", f"{by} predicts token {odd}, and the model has {rows}")
    nats = [divergence(meant_TV[length - 1], top) for length, top in zip(lengths, tops, strict=True)]
    same = [int(meant_TV[length - 1].argmax()) == top[0][0] for length, top in zip(lengths, tops, strict=True)]
    found, how = (np.median(nats), "median") if experts else (np.mean(nats), "mean")
    said = (
        f"{max(found, 0.0):.2g} nats per token, the {how} of {len(nats)} places (bound {most:.2g}), same first choice "
        f"for {np.mean(same):.0%}; {by}"
    )
    return Check(target, NAME, "within" if found <= most else "wrong", said)


def _lengths(count: int) -> list[int]:
    """Of the beginnings that are asked about. One place stays free: the next token must fit the context."""
    return sorted({max(1, (count - 1) * number // _PLACES) for number in range(1, _PLACES + 1)}) if count > 1 else []


def _refused(target: str, by: str, printed: str, said: str) -> Check:
    """A file that was not loaded: the file's fault only where llama.cpp says what is wrong with it."""
    errors = [line.split(" E ", 1)[1].strip() for line in printed.splitlines() if " E " in line]
    reason = next((line.split("error loading model:", 1)[1].strip() for line in errors if "error loading" in line), "")
    if not reason or _NOT_THE_FILE.match(reason):
        why = next(filter(None, (reason, *errors, said)), "?")
        return Check(target, NAME, "skipped", f"{by} cannot load it here: {why}"[:300])
    return Check(target, NAME, "wrong", f"{by} does not load it: {reason}"[:300])


def _ended(target: str, by: str, code: int, printed: str) -> Check:
    """A program that ended without an answer: one of llama.cpp's own checks is the file's fault, all else is not."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    failed = next((line for line in lines if "GGML_ASSERT(" in line), None)
    if failed is not None:
        return Check(target, NAME, "wrong", f"{by} stops at {failed}"[:300])
    how = f"was ended by a signal ({signal.strsignal(-code) or -code})" if code < 0 else f"ended with {code}"
    said = f": {lines[-1]}" if lines and code > 0 else ""
    return Check(target, NAME, "skipped", f"{by} {how}{said}"[:300])


def _idle_cores() -> int:
    """Threads that nobody else stands in the way of. They wait for each other after each matrix: two on a core and a
    half are slower than one, by ten times and more.
    """
    return max(1, round(usable_cores() * (1.0 - psutil.cpu_percent(interval=0.2) / 100.0)))
