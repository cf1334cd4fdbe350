"""The doctor: all checks in their order, over one record of a machine.

Pure: what is right and wrong follows from the evidence alone, so a record from anywhere is judged here.
"""

from __future__ import annotations

from collections.abc import Sequence

from hasten.hardware.checks.compiler import compiler_findings
from hasten.hardware.checks.driver import driver_findings
from hasten.hardware.checks.memory import memory_findings
from hasten.hardware.checks.packages import package_findings
from hasten.hardware.checks.surroundings import surrounding_findings
from hasten.hardware.checks.torch import torch_findings
from hasten.hardware.checks.triton import triton_findings
from hasten.hardware.evidence import Evidence
from hasten.hardware.finding import STATES, Finding


def examine(evidence: Evidence, requirements: Sequence[str] | None = None) -> tuple[Finding, ...]:
    """Everything that was found, in the order in which it builds on each other.

    Args:
        evidence: from `read_evidence` or `load_evidence`.
        requirements: hasten's own, as `importlib.metadata.requires` gives them; None for those of this installation.
    """
    return (
        *surrounding_findings(evidence),
        *driver_findings(evidence),
        *torch_findings(evidence),
        *triton_findings(evidence),
        *compiler_findings(evidence),
        *memory_findings(evidence),
        *package_findings(evidence, requirements),
    )


def verdict(findings: Sequence[Finding]) -> str:
    """One line over all of them."""
    counted = {state: sum(finding.state == state for finding in findings) for state in STATES}
    if not counted["fault"] and not counted["warning"]:
        return "Nothing is wrong here."
    parts = [f"{counted[state]} {state}{'s' if counted[state] > 1 else ''}" for state in ("fault", "warning")]
    return f"{' and '.join(part for part in parts if not part.startswith('0 '))}; what to do stands below each."
