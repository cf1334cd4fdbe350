"""Compilers: the C compiler that Triton's launcher is built with, and CUDA toolkits, which nobody needs."""

from __future__ import annotations

import re

from hasten.hardware.checks.facts import has_gpu, install_command
from hasten.hardware.checks.triton import needs_compiler
from hasten.hardware.evidence import Evidence, Reading
from hasten.hardware.finding import Finding
from hasten.hardware.texts import release_of, shown, version_of


def compiler_findings(evidence: Evidence) -> list[Finding]:
    """What the compilers are like."""
    return [*_c_compiler(evidence), *_toolkits(evidence)]


def _c_compiler(evidence: Evidence) -> list[Finding]:
    if not needs_compiler(evidence):
        return [Finding("skipped", "C compiler", "only Triton's kernels need one")]
    compiler = evidence.commands.get("cc", Reading(failure="not found"))
    # With a kernel that ran, what is missing was not missed: it was built elsewhere, or earlier.
    proven = evidence.triton.kernel is not None and evidence.triton.kernel.came
    state = "note" if proven else "fault"
    findings = []
    if not compiler.came:
        command = evidence.environment.get("CC")
        named = f" (CC names '{command}')" if command else ""
        found = f"{compiler.failure}{named}: Triton cannot build its launcher"
        findings.append(Finding(state, "C compiler", found, install_command(evidence, "build-essential")))
    elif not re.match(r"[\x20-\x7e]*\b(gcc|cc|clang)\b[\x20-\x7e]*\b\d+\.\d+", compiler.text):
        findings.append(Finding("warning", "C compiler", "what it says of itself could not be read"))
    else:
        findings.append(Finding("ok", "C compiler", compiler.text.strip().splitlines()[0].strip()[:100]))
    if not evidence.python.header:
        version = version_of(evidence.python.version) or (3,)
        package = f"python{shown(version[:2])}-dev"
        found = "Python.h is missing: Triton cannot build its launcher"
        findings.append(Finding(state, "C compiler", found, install_command(evidence, package)))
    return findings


def _toolkits(evidence: Evidence) -> list[Finding]:
    if not has_gpu(evidence):
        return []
    nvcc = evidence.commands.get("nvcc", Reading(failure="not found"))
    on_path = release_of(nvcc.text) if nvcc.came else None
    releases = {release for reading in evidence.ptxas.values() if (release := release_of(reading.text))}
    releases |= {on_path} if on_path else set()
    torch = version_of(evidence.torch.cuda)
    if not releases:
        return [Finding("ok", "CUDA toolkit", "none, and none is needed: torch brings its own libraries")]
    listed = ", ".join(shown(release) for release in sorted(releases))
    if torch and any(release[:2] != torch[:2] for release in releases):
        found = f"{listed} beside torch's own {shown(torch)}: does no harm, torch uses its own"
        return [Finding("note", "CUDA toolkit", found)]
    return [Finding("ok", "CUDA toolkit", f"{listed}{', on the path' if on_path else ''}")]
