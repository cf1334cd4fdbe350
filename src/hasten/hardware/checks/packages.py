"""Python and packages: are they there, old enough, new enough, and does bitsandbytes compute."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hasten.hardware.checks.facts import ENVIRONMENT, container_of, install_command, torch_command
from hasten.hardware.evidence import Evidence
from hasten.hardware.finding import Finding
from hasten.hardware.tested import NEEDED, NEWEST, newer_than_tested, oldest
from hasten.hardware.texts import last_line, shown, version_of

FIRST_PYTHON = (3, 11)


def package_findings(evidence: Evidence, requirements: Sequence[str] | None = None) -> list[Finding]:
    """What Python and the packages are like.

    Args:
        evidence: the machine.
        requirements: hasten's; None for those of this installation.
    """
    return [_python(evidence), *_versions(evidence, requirements), _bitsandbytes(evidence)]


def _python(evidence: Evidence) -> Finding:
    version = version_of(evidence.python.version)
    if version is None:
        return Finding("warning", "Python", "its version could not be read")
    if version < FIRST_PYTHON:
        found = f"{evidence.python.version}: hasten needs {shown(FIRST_PYTHON)} or later"
        return Finding("fault", "Python", found, _other_python(evidence))
    if evidence.python.managed and not evidence.python.virtual and not container_of(evidence):
        found = f"{evidence.python.version} of the system, which keeps its packages to itself: pip refuses to install"
        return Finding("warning", "Python", found, ENVIRONMENT)
    where = "in a virtual environment" if evidence.python.virtual else "without a virtual environment"
    return Finding("ok", "Python", f"{evidence.python.version} {where}")


def _other_python(evidence: Evidence) -> str:
    apt = any(name in evidence.text("/etc/os-release").lower() for name in ("ubuntu", "debian"))
    install = f"{install_command(evidence, 'python3.11 python3.11-venv')}\n" if apt else ""
    return f"{install}python3.11 -m venv ~/hasten && . ~/hasten/bin/activate"


def _versions(evidence: Evidence, requirements: Sequence[str] | None) -> list[Finding]:
    least = oldest(requirements)
    newer = newer_than_tested(evidence.packages)
    ahead = {line.partition(" ")[0] for line in newer}
    findings, fine = [], []
    for name, text in evidence.packages.items():
        version, first = version_of(text), least.get(name)
        if not text:
            if name in NEEDED and name != "torch":  # which has a check of its own
                findings.append(Finding("fault", name, "not installed", f"pip install '{_wanted(name, first)}'"))
        elif version is None:
            findings.append(Finding("warning", name, f"version '{text[:40]}' could not be read"))
        elif first and version < first:
            found = f"{text}: hasten needs {shown(first)} or later"
            remedy = f"pip install --upgrade '{_wanted(name, first)}'"
            # Of optional packages only their part suffers.
            state = "fault" if name in NEEDED else "warning"
            findings.append(Finding(state, name, found, _newer_torch(evidence) if name == "torch" else remedy))
        elif name in NEWEST and name not in ahead:
            fine.append(f"{name} {text}")
    if newer:
        findings.append(Finding("note", "packages", f"newer than tested: {', '.join(newer)}"))
    if fine:
        findings.append(Finding("ok", "packages", f"in the tested range: {', '.join(fine)}"))
    if not fine and not newer and not findings:
        findings.append(Finding("warning", "packages", "no versions could be read"))
    return findings


def _newer_torch(evidence: Evidence) -> str | None:
    # A vendor's build is not replaced by pip: a newer container has a newer one.
    return None if "NVIDIA" in container_of(evidence) else torch_command(evidence)


def _wanted(name: str, first: tuple[int, ...] | None) -> str:
    return f"{name}>={shown(first)}" if first else name


def _bitsandbytes(evidence: Evidence) -> Finding:
    facts = evidence.bitsandbytes
    if not facts.version:
        return Finding("skipped", "bitsandbytes", "not installed: only load_in_4bit and load_in_8bit need it")
    if facts.works is None:
        return Finding("skipped", "bitsandbytes", f"{facts.version}, not tried")
    if facts.works.came and re.match(r"(works|loads) on (cuda|cpu)$", facts.works.text.strip()):
        return Finding("ok", "bitsandbytes", f"{facts.version} {facts.works.text.strip()}")
    why = last_line(facts.works.failure) or last_line(facts.works.text) or "no answer"
    if "no kernel image" in f"{facts.works.failure}{facts.works.text}":
        return Finding("skipped", "bitsandbytes", f"{facts.version} cannot be tried: torch has no code for this card")
    cuda = evidence.torch.cuda.replace(".", "")
    if cuda and evidence.torch.available and facts.libraries and f"cuda{cuda}" not in facts.libraries:
        has = ", ".join(name for name in facts.libraries if name.startswith("cuda")) or "none for CUDA"
        found = f"{facts.version} has no library for CUDA {evidence.torch.cuda} (it has: {has}): no 4-bit loading"
        return Finding("fault", "bitsandbytes", found, "pip install --upgrade bitsandbytes")
    found = f"{facts.version} does not work: {why}"
    return Finding("fault", "bitsandbytes", found, "python -m bitsandbytes   # tells more")
