"""What several checks ask of the evidence: which GPUs there are, what hides them, where this runs."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.hardware.evidence import Evidence, Reading
from hasten.hardware.texts import Gpu, Version, architecture_of, driver_in_header, driver_of_kernel, gpus_in_table

TORCH_INDEX = "https://download.pytorch.org/whl"
_OPEN_DRIVER = "580"
"""The first driver branch for CUDA 13."""


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver, from all that tells of it."""

    version: str
    cuda: Version | None
    """The newest CUDA that it runs."""
    loaded: str
    """The kernel module's version, where the kernel tells."""
    gpus: tuple[Gpu, ...]


def driver_of(evidence: Evidence) -> Driver:
    """The driver and its GPUs; empty parts where nothing tells of them."""
    version, cuda = driver_in_header(evidence.commands.get("nvidia-smi", Reading()).text)
    gpus = gpus_in_table(evidence.commands.get("gpus", Reading()).text)
    loaded = driver_of_kernel(evidence.text("/proc/driver/nvidia/version"))
    version = version or next((gpu.driver for gpu in gpus if gpu.driver), loaded)
    return Driver(version, cuda, loaded, gpus)


def has_gpu(evidence: Evidence) -> bool:
    """Whether there is any sign of an NVIDIA GPU, usable or not."""
    signs = ("/dev/nvidiactl", "/dev/nvidia0", "/proc/driver/nvidia")
    return bool(evidence.torch.devices or driver_of(evidence).gpus or any(path in evidence.present for path in signs))


def capability_of(evidence: Evidence) -> tuple[int, int] | None:
    """The first device's compute capability, from torch or from `nvidia-smi`."""
    if evidence.torch.devices:
        device = evidence.torch.devices[0]
        return device.major, device.minor
    return next((gpu.capability for gpu in driver_of(evidence).gpus if gpu.capability), None)


def hidden(evidence: Evidence) -> bool:
    """Whether CUDA_VISIBLE_DEVICES hides every device: it is empty, or names none first."""
    value = evidence.environment.get("CUDA_VISIBLE_DEVICES")
    return value is not None and value.split(",")[0].strip() in ("", "-1", "NoDevFiles")


def is_wsl(evidence: Evidence) -> bool:
    """Whether this is Windows' subsystem for Linux, version 2."""
    kernel = evidence.text("/proc/version").lower()
    return "/dev/dxg" in evidence.present or "wsl2" in kernel or "WSL_DISTRO_NAME" in evidence.environment


def container_of(evidence: Evidence) -> str:
    """What kind of container this runs in; empty on the machine itself."""
    groups = evidence.text("/proc/self/cgroup")
    if "NVIDIA_PYTORCH_VERSION" in evidence.environment:
        return f"NVIDIA's PyTorch container {evidence.environment['NVIDIA_PYTORCH_VERSION']}"
    if "kubepods" in groups:
        return "a Kubernetes container"
    if "/.dockerenv" in evidence.present or "/docker/" in groups:
        return "a Docker container"
    if "/run/.containerenv" in evidence.present or "libpod" in groups:
        return "a Podman container"
    return f"a container ({evidence.environment['container']})" if evidence.environment.get("container") else ""


def is_unified(evidence: Evidence) -> bool:
    """Whether the GPU's memory is the machine's: by torch, or by the name of the chip where torch sees none."""
    if evidence.torch.devices:
        return evidence.torch.devices[0].integrated
    gpus = driver_of(evidence).gpus
    return bool(gpus) and any(chip in gpus[0].name for chip in ("GB10", "Thor", "Orin"))


def torch_command(evidence: Evidence) -> str:
    """The pip command that brings a torch which this driver and this card run."""
    cuda, capability = driver_of(evidence).cuda, capability_of(evidence)
    blackwell = capability is not None and capability >= (10, 0)
    newest = capability is not None and capability >= (12, 1)
    if capability is not None and capability < (7, 5):
        build = "cu126"  # builds for CUDA 13 begin with Turing
    elif cuda is None or cuda >= (13, 0) or newest or evidence.machine == "aarch64":
        build = "cu130"
    else:
        build = "cu128" if blackwell else "cu126"
    container = container_of(evidence)
    needs_environment = evidence.python.managed and not evidence.python.virtual and not container
    first = f"{ENVIRONMENT}\n" if needs_environment else ""
    return f"{first}pip install --force-reinstall torch --index-url {TORCH_INDEX}/{build}"


ENVIRONMENT = "python3 -m venv ~/hasten && . ~/hasten/bin/activate"
"""Makes and enters a virtual environment."""


def install_command(evidence: Evidence, package: str) -> str:
    """What installs a package of the system; containers come without lists of packages."""
    return f"apt update && apt install -y {package}" if container_of(evidence) else f"sudo apt install {package}"


def driver_command(evidence: Evidence) -> str | None:
    """What updates the driver, where this system has a command for it."""
    if is_wsl(evidence) or container_of(evidence):
        return None
    system = evidence.text("/etc/os-release")
    if "/etc/dgx-release" in evidence.files:
        return "sudo apt update && sudo apt full-upgrade && sudo reboot"
    if "ubuntu" in system.lower():
        capability = capability_of(evidence)
        kind = "" if capability is not None and capability < (7, 5) else "-open"  # open modules begin with Turing
        return f"sudo apt update && sudo apt install nvidia-driver-{_OPEN_DRIVER}{kind} && sudo reboot"
    return None


def how_it_runs(archs: tuple[str, ...], capability: tuple[int, int]) -> str:
    """How binaries for some architectures run on a card: ``binary``, ``ptx`` (compiled at first use), or empty: not.

    A binary runs on later minor versions of its major version: `sm_120` on 12.1. A trailing `f` keeps that rule, a
    trailing `a` means exactly that chip. PTX runs on everything later; with a letter, as binaries do.

    Args:
        archs: as `torch.cuda.get_arch_list` gives them.
        capability: of the card.
    """
    found = ""
    for arch in archs:
        parts = architecture_of(arch)
        if parts is None:
            continue
        kind, version, letter = parts
        family = version[0] == capability[0] and version[1] <= capability[1]
        exact = version == capability
        if kind == "sm" and (exact if letter == "a" else family):
            return "binary"
        later = exact if letter == "a" else family if letter == "f" else version <= capability
        if kind == "compute" and later:
            found = "ptx"
    return found
