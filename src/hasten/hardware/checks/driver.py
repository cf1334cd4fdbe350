"""The driver: is it there, does it answer, is it one, is it new enough, what does it show."""

from __future__ import annotations

from hasten.hardware.checks.facts import Driver, container_of, driver_command, driver_of, has_gpu, is_wsl, torch_command
from hasten.hardware.evidence import Evidence, Reading
from hasten.hardware.finding import Finding
from hasten.hardware.texts import last_line, shown, version_of

_WINDOWS = "The driver is Windows': install the newest from https://www.nvidia.com/drivers there."
FIRST_DRIVER = {13: (580,), 12: (525,)}
"""The first driver branch that runs each CUDA."""


def driver_findings(evidence: Evidence) -> list[Finding]:
    """What the driver is like."""
    driver, answer = driver_of(evidence), evidence.commands.get("nvidia-smi", Reading(failure="not found"))
    if answer.failure == "not found" and not driver.gpus:
        return [_without(evidence, driver)]
    if not answer.came or not driver.gpus and not driver.version:
        return [_silent(evidence, answer)]
    findings = [_versions(evidence, driver)]
    findings += [_gpu(gpu.name, gpu.total_bytes, gpu.capability) for gpu in driver.gpus]
    if not driver.gpus:
        findings.append(Finding("warning", "GPU", "the driver answers and lists no GPU that could be read"))
    if any(gpu.mig for gpu in driver.gpus):
        findings.append(_instances(evidence))
    return findings


def _without(evidence: Evidence, driver: Driver) -> Finding:
    if evidence.torch.available or driver.loaded:
        text = f"nvidia-smi is not here; the kernel has driver {driver.loaded or '?'}"
        return Finding("note", "driver", text)
    if has_gpu(evidence):
        return Finding("fault", "driver", "a GPU's device files are here, but no driver answers", "sudo reboot")
    return Finding("skipped", "driver", "no NVIDIA GPU or driver: work is done on the CPU")


def _silent(evidence: Evidence, answer: Reading) -> Finding:
    text = answer.text.lower()
    if "version mismatch" in text:
        found = "its library and the kernel's module are of different versions, as after an update without a restart"
        return Finding("fault", "driver", found, None if container_of(evidence) else "sudo reboot")
    why = answer.failure or "nothing that could be read"
    if "couldn't communicate" in text or "could not communicate" in text:
        found = "nvidia-smi cannot reach the driver: its module is not loaded"
        if is_wsl(evidence):
            return Finding("fault", "driver", f"{found}. {_WINDOWS}", "wsl.exe --shutdown")
        return Finding("fault", "driver", found, None if container_of(evidence) else "sudo modprobe nvidia")
    return Finding("fault", "driver", f"nvidia-smi fails ({why}): {last_line(answer.text) or 'no text'}")


def _versions(evidence: Evidence, driver: Driver) -> Finding:
    said = f"{driver.version or '?'}, runs CUDA up to {shown(driver.cuda)}"
    if driver.loaded and driver.version and driver.loaded != driver.version and not is_wsl(evidence):
        found = f"{said}; the kernel has {driver.loaded} loaded, as after an update without a restart"
        return Finding("fault", "driver", found, "sudo reboot")
    if not driver.version or driver.cuda is None:
        return Finding("warning", "driver", f"{said}: its versions could not be read")
    needs = version_of(evidence.torch.cuda)
    if needs and needs[0] > driver.cuda[0]:
        first = FIRST_DRIVER.get(needs[0])
        wants = f" (driver {shown(first)} or later)" if first else ""
        advice = f" {_WINDOWS}" if is_wsl(evidence) else ""
        where = " Update it on the host." if container_of(evidence) and not is_wsl(evidence) else ""
        found = f"{said}: too old for this torch, which needs CUDA {shown(needs)}{wants}.{advice}{where}"
        return Finding("fault", "driver", found, _newer_driver_or_older_torch(evidence))
    if needs and needs > driver.cuda:
        found = f"{said}; torch's {shown(needs)} is newer by its second number, which CUDA allows"
        return Finding("note", "driver", found)
    return Finding("ok", "driver", said)


def _newer_driver_or_older_torch(evidence: Evidence) -> str:
    update, other = driver_command(evidence), torch_command(evidence)
    return "\n".join(filter(None, [update and f"{update}   # a newer driver", f"{other}   # or an older torch"]))


def _gpu(name: str, total_bytes: int | None, capability: tuple[int, int] | None) -> Finding:
    memory = "memory shared with the CPU" if total_bytes is None else f"{total_bytes / 2**30:.1f} GiB"
    version = f", compute capability {shown(capability)}" if capability else ""
    return Finding("ok", "GPU", f"{name}, {memory}{version}")


def _instances(evidence: Evidence) -> Finding:
    listed = "nvidia-smi -L   # lists instances\nexport CUDA_VISIBLE_DEVICES=MIG-...   # one of them"
    if evidence.torch.available:
        found = "MIG is on: the GPU is cut into instances, and a process uses one of them"
        return Finding("note", "MIG", found, listed)
    found = "MIG is on, and torch sees no instance: none was made, or none is visible here"
    return Finding("fault", "MIG", found, f"{listed}\nsudo nvidia-smi -mig 0   # or the whole GPU again")
