"""Triton: is it there, does its assembler know the card, did its first kernel compute.

A Triton that cannot compile costs speed, not numbers: fast layers then run in plain torch. It is a fault all the same,
for the machine can do better.
"""

from __future__ import annotations

import re

from hasten.hardware.checks.facts import capability_of, install_command
from hasten.hardware.evidence import Evidence, Reading
from hasten.hardware.finding import Finding
from hasten.hardware.texts import last_line, release_of, shown, version_of

FIRST_RELEASE: dict[tuple[int, int], tuple[int, int]] = {
    (8, 9): (11, 8),
    (9, 0): (11, 8),
    (10, 0): (12, 8),
    (12, 0): (12, 8),
    (10, 3): (12, 9),
    (12, 1): (12, 9),
    (11, 0): (13, 0),
}
"""The first CUDA release whose assembler knows each chip; older chips are known to all."""

_NO_COMPILER = "there is no C compiler"
_SLOWER = "fast layers run in plain torch: slower, same numbers"


def triton_findings(evidence: Evidence) -> list[Finding]:
    """What Triton is like."""
    triton, capability = evidence.triton, capability_of(evidence)
    if capability is None:
        return [Finding("skipped", "Triton", "its kernels are for GPUs; on a CPU plain torch gives the same numbers")]
    if not triton.version:
        return [Finding("warning", "Triton", f"not installed: {_SLOWER}", "pip install triton")]
    assembler = _assembler(evidence, capability)
    kernel = _kernel(evidence, capability, told=assembler is not None)
    return [finding for finding in (assembler, kernel) if finding]


def used_assembler(evidence: Evidence, capability: tuple[int, int]) -> tuple[str, Reading | None]:
    """The assembler that Triton takes for a card: its variable's name, and what it says of itself.

    Releases that bring `ptxas-blackwell` take it for Blackwell cards at least; it has a variable of its own.
    """
    newer = "ptxas-blackwell" in evidence.triton.bundled and capability >= (10, 0)
    variable = "TRITON_PTXAS_BLACKWELL_PATH" if newer else "TRITON_PTXAS_PATH"
    chosen = evidence.environment.get(variable)
    if chosen and (reading := evidence.ptxas.get(chosen)) and reading.came:
        return variable, reading
    if chosen and chosen not in evidence.ptxas:  # somewhere else: only the kernel can tell
        return variable, None
    return variable, evidence.triton.bundled.get("ptxas-blackwell" if newer else "ptxas")


def better_assembler(evidence: Evidence, capability: tuple[int, int]) -> str | None:
    """The path of the newest toolkit's assembler that knows a card; the shortest, which is the one that stays."""
    needed = FIRST_RELEASE.get(capability, (0, 0))
    releases = {path: release_of(reading.text) for path, reading in evidence.ptxas.items() if reading.came}
    knowing = [(release, path) for path, release in releases.items() if release and release >= needed]
    newest = max((release for release, _ in knowing), default=None)
    return min((path for release, path in knowing if release == newest), default=None, key=len)


def _assembler(evidence: Evidence, capability: tuple[int, int]) -> Finding | None:
    variable, reading = used_assembler(evidence, capability)
    kernel = evidence.triton.kernel
    unknown = _unknown_chip(kernel.text) if kernel and not kernel.came else None
    release, needed = release_of(reading.text) if reading else None, FIRST_RELEASE.get(capability)
    if unknown is None and (kernel is not None and kernel.came or needed is None or release is None):
        return None
    if unknown is None and release is not None and needed is not None and release >= needed:
        return None
    if kernel and not kernel.came and "ptxas-blackwell" in kernel.text:
        variable = "TRITON_PTXAS_BLACKWELL_PATH"
    chip = unknown or f"sm_{capability[0]}{capability[1]}"
    found = f"its assembler (CUDA {shown(release)}) does not know this card ({chip}): {_SLOWER}"
    path = better_assembler(evidence, capability)
    if path:
        return Finding("fault", "Triton's ptxas", f"{found}. {path} does.", f"export {variable}={path}")
    first = shown(needed or (13, 0))
    found = f"{found}. No toolkit here has one that does (CUDA {first} or later); then set {variable} to its path."
    return Finding("fault", "Triton's ptxas", found, _install_assembler(evidence, variable))


def _install_assembler(evidence: Evidence, variable: str) -> str:
    return f"{install_command(evidence, 'cuda-nvcc-13-0')}\nexport {variable}=/usr/local/cuda-13.0/bin/ptxas"


def _kernel(evidence: Evidence, capability: tuple[int, int], *, told: bool) -> Finding | None:
    kernel, name = evidence.triton.kernel, f"Triton {evidence.triton.version}"
    if kernel is None:
        return None if told else Finding("skipped", "Triton", f"{name}: torch sees no device to try a kernel on")
    if kernel.came and last_line(kernel.text) == "equal":
        found = f"{name} compiled a kernel for sm_{capability[0]}{capability[1]}; its numbers are torch's"
        return Finding("ok", "Triton", found)
    if kernel.came:
        found = f"{name} compiled a kernel whose numbers are not torch's: {last_line(kernel.text) or 'no answer'}"
        return Finding("fault", "Triton", found, "rm -rf ~/.triton/cache")
    if told:
        return None
    why, remedy = why_it_failed(kernel.text)
    return Finding("fault", "Triton", f"{name} cannot run a kernel ({kernel.failure}): {why}; {_SLOWER}", remedy)


def why_it_failed(text: str) -> tuple[str, str | None]:
    """What a failed kernel's text says, and what helps.

    Args:
        text: what the process printed, or an exception's own text.
    """
    if "Failed to find C compiler" in text:
        return _NO_COMPILER, None  # its own check has the command
    if "Python.h" in text:
        return "Python.h is missing", None
    if "no kernel image" in text:
        return "torch has no code for this card", None
    if "libcuda" in text and "cannot" in text:
        return "the driver's libcuda.so is not found", "sudo ldconfig"
    return last_line(text) or "no text", None


def failed_kernel(text: str) -> tuple[str, str]:
    """What kept a kernel from running, and what to do, in a few words for one line.

    Args:
        text: of the exception, with what the assembler printed in it.
    """
    doctor = "`hasten doctor` tells what to type"
    if chip := _unknown_chip(text):
        match = re.search(r"Repro command: (\S+)", text)
        path = match[1] if match else "ptxas"
        variable = "TRITON_PTXAS_BLACKWELL_PATH" if path.endswith("ptxas-blackwell") else "TRITON_PTXAS_PATH"
        return f"{path} does not know {chip}", f"set {variable} to a newer ptxas, {doctor}"
    if "CalledProcessError" in text:
        return "its C compiler failed, see above", f"Python.h may be missing, {doctor}"
    why, _ = why_it_failed(text)
    return why, "`sudo apt install build-essential` brings one" if why == _NO_COMPILER else doctor


def needs_compiler(evidence: Evidence) -> bool:
    """Whether a C compiler is wanted here: Triton builds its launcher with one."""
    return capability_of(evidence) is not None and version_of(evidence.triton.version) is not None


def _unknown_chip(text: str) -> str | None:
    match = re.search(r"Value '((?:sm|compute)_\w+)' is not defined for option 'gpu-name'", text)
    return match[1] if match else None
