"""torch: which build it is, whether it sees the card, whether it has code for it."""

from __future__ import annotations

from hasten.hardware.checks.facts import (
    capability_of,
    container_of,
    driver_of,
    has_gpu,
    hidden,
    how_it_runs,
    is_wsl,
    torch_command,
)
from hasten.hardware.evidence import DeviceFacts, Evidence, Reading
from hasten.hardware.finding import Finding
from hasten.hardware.texts import last_line, shown, version_of

_VENDOR = "NVIDIA's container has its own torch: do not install another over it."


def torch_findings(evidence: Evidence) -> list[Finding]:
    """What torch is like."""
    torch = evidence.torch
    if not torch.version:
        return [Finding("fault", "torch", "not installed", _other_torch(evidence))]
    if torch.failure:
        return [Finding("fault", "torch", f"{torch.version} does not load: {torch.failure}", _other_torch(evidence))]
    if torch.hip:
        found = f"{torch.version} is for AMD's ROCm {torch.hip}, where hasten was never tested"
        return [Finding("warning", "torch", found)]
    if torch.available and torch.devices:
        return [_build(evidence), *(_device(evidence, device) for device in torch.devices)]
    if not has_gpu(evidence):
        return [_build(evidence), *_without_gpu(evidence)]
    return [_unseen(evidence)]


def _other_torch(evidence: Evidence) -> str | None:
    return None if "NVIDIA" in container_of(evidence) else torch_command(evidence)


def _build(evidence: Evidence) -> Finding:
    kind = f"CUDA {evidence.torch.cuda}" if evidence.torch.cuda else "a CPU build"
    return Finding("ok", "torch", f"{evidence.torch.version}, {kind}")


def _without_gpu(evidence: Evidence) -> list[Finding]:
    if hidden(evidence):
        return [_hidden("no device would be seen if there were one")]
    if evidence.torch.cuda and container_of(evidence) and not is_wsl(evidence):
        name = container_of(evidence)
        found = f"{name} without a GPU: if the machine has one, start the container with it"
        return [Finding("warning", "torch and the GPU", found, _run_with_gpu(evidence))]
    if evidence.torch.cuda and is_wsl(evidence):
        found = "a CUDA build, and WSL shows no GPU. The driver is Windows': install the newest from NVIDIA there."
        return [Finding("warning", "torch and the GPU", found, "wsl.exe --update")]
    return []


def _run_with_gpu(evidence: Evidence) -> str:
    if "Podman" in container_of(evidence):
        return "podman run --device nvidia.com/gpu=all ..."
    return "docker run --gpus all --ipc=host --ulimit memlock=-1 --ulimit stack=67108864 ..."


def _hidden(consequence: str) -> Finding:
    found = f"CUDA_VISIBLE_DEVICES hides every device: {consequence}"
    return Finding("warning", "torch and the GPU", found, "unset CUDA_VISIBLE_DEVICES")


def _unseen(evidence: Evidence) -> Finding:
    """A GPU that torch does not see, and why."""
    torch, driver = evidence.torch, driver_of(evidence)
    if not torch.cuda:
        names = ", ".join(gpu.name for gpu in driver.gpus) or "a GPU"
        found = f"{torch.version} is a CPU build beside {names}: nothing runs on the GPU"
        return Finding("fault", "torch", found, _other_torch(evidence))
    if hidden(evidence):
        return _hidden("work is done on the CPU")
    said = last_line(torch.said)
    needs = version_of(torch.cuda)
    if "too old" in torch.said or (driver.cuda and needs and needs[0] > driver.cuda[0]):
        found = f"{torch.version} cannot start CUDA {torch.cuda} on driver {driver.version or '?'}"
        return Finding("fault", "torch and the GPU", f"{found}: see driver")
    if evidence.commands.get("nvidia-smi", Reading(failure="not found")).failure not in ("", "not found"):
        return Finding("fault", "torch and the GPU", f"{torch.version} sees no device: see driver")
    if any(gpu.mig for gpu in driver.gpus):
        return Finding("fault", "torch and the GPU", f"{torch.version} sees no device: see MIG")
    if container_of(evidence) and "/dev/nvidiactl" not in evidence.present and not is_wsl(evidence):
        found = f"{container_of(evidence)} was started without the GPU"
        return Finding("fault", "torch and the GPU", found, _run_with_gpu(evidence))
    found = f"{torch.version} sees no device{f': {said}' if said else ''}"
    return Finding("fault", "torch and the GPU", found, "nvidia-smi   # does the driver answer?")


def _device(evidence: Evidence, device: DeviceFacts) -> Finding:
    capability, archs = (device.major, device.minor), evidence.torch.archs
    subject, card = "torch and the GPU", f"{device.name} (compute capability {shown(capability)})"
    if not archs:
        return Finding("warning", subject, f"sees {card}, and does not tell what it was compiled for")
    kind, listed = how_it_runs(archs, capability), ", ".join(archs)
    if kind == "binary":
        ignored = ""
        if _warns_of(evidence, device):
            ignored = "; torch's warning about it can be ignored: code runs on later chips of its generation"
        return Finding("ok", subject, f"has code for {card}: {_matching(archs, capability)}{ignored}")
    if kind == "ptx":
        found = f"has no code for {card} ({listed}), and compiles it at first use: the start is slow"
        return Finding("note", subject, found)
    advice = f". {_VENDOR}" if "NVIDIA" in container_of(evidence) else ""
    found = f"was not compiled for {card}, only for {listed}: kernels fail with 'no kernel image'{advice}"
    return Finding("fault", subject, found, _other_torch(evidence))


def _warns_of(evidence: Evidence, device: DeviceFacts) -> bool:
    said = evidence.torch.said
    return device.name in said and ("apability" in said) and capability_of(evidence) is not None


def _matching(archs: tuple[str, ...], capability: tuple[int, int]) -> str:
    return next((arch for arch in reversed(archs) if how_it_runs((arch,), capability) == "binary"), "")
