"""What this machine has and lacks: the facts that ``fm doctor`` prints."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import psutil

PACKAGES = ("torch", "lightning", "deepspeed", "transformers", "webdataset", "blosc2", "pydicom", "dcm2niix", "wandb")
GB = 1e9
DEMO_DISK_GB = 3.0
"""What the demo needs with room to spare."""
DEMO_MEMORY_GB = 6.0


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of the doctor's page."""

    topic: str
    found: str
    advice: str = ""
    """What to do; '' where nothing is missing."""
    needed: bool = False
    """Whether nothing works without it."""


def examine(folder: Path) -> list[Fact]:
    """Every fact about this machine; `folder` is where runs will be written."""
    checks: tuple[Callable[[], list[Fact]], ...] = (
        _software,
        _devices,
        _accelerator,
        lambda: _space(folder),
        _compiler,
        _offload,
        _slurm,
        _storage,
        _git,
    )
    return [fact for check in checks for fact in check()]


def _software() -> list[Fact]:
    facts = [Fact("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    for name in PACKAGES:
        try:
            facts.append(Fact(name, version(name)))
        except PackageNotFoundError:
            facts.append(Fact(name, "missing", "run make install", needed=True))
    if find_spec("torchvision") is not None:
        facts.append(Fact("torchvision", "installed", "pip uninstall torchvision: a wrong build breaks lightning"))
    return facts


def _devices() -> list[Fact]:
    if find_spec("torch") is None:
        return []
    import torch

    from fm.parallel.hardware import cpu_has_bf16

    cores = Fact("CPU", f"{os.cpu_count()} cores, bf16 {'native' if cpu_has_bf16() else 'emulated: fp32 is used'}")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return [
            cores,
            *(Fact(f"GPU {i}", f"{gpu.name}, {gpu.total_memory / GB:.0f} GB") for i, gpu in enumerate(names)),
        ]
    if shutil.which("nvidia-smi") is None:
        return [
            cores,
            Fact("GPU", "none", "CPU does for demo and tests; a GPU needs NVIDIA's driver, and torch for CUDA"),
        ]
    reason = "this torch is built for CPU: see GPU in README" if torch.version.cuda is None else "see nvidia-smi"
    return [cores, Fact("GPU", "present, but torch cannot use it", reason)]


def _accelerator() -> list[Fact]:
    if find_spec("deepspeed") is None:
        return []
    import torch

    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    from deepspeed.accelerator import get_accelerator

    found = get_accelerator()
    return [Fact("DeepSpeed", f"accelerator {found.device_name()}, backend {found.communication_backend_name()}")]


def _space(folder: Path) -> list[Fact]:
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    free, memory = shutil.disk_usage(place).free / GB, psutil.virtual_memory()
    short = f"the demo wants {DEMO_DISK_GB:.0f} GB" if free < DEMO_DISK_GB else ""
    little = f"the demo wants {DEMO_MEMORY_GB:.0f} GB" if memory.available / GB < DEMO_MEMORY_GB else ""
    shared = Path("/dev/shm")
    facts = [
        Fact("Disk", f"{free:.0f} GB free at {folder}", short),
        Fact("Memory", f"{memory.available / GB:.0f} GB free of {memory.total / GB:.0f} GB", little),
    ]
    if shared.is_dir() and (room := shutil.disk_usage(shared).total / GB) < 1:
        facts.append(Fact("/dev/shm", f"{room:.2f} GB", "loader workers need about 1 GB: docker run --shm-size=8g"))
    return facts


def _compiler() -> list[Fact]:
    found = [name for name in ("g++", "ninja") if shutil.which(name)]
    lacking = [name for name in ("g++", "ninja") if name not in found]
    advice = f"without {' and '.join(lacking)}: no torch.compile, no offload to NVMe; all else works"
    return [Fact("Compiler", ", ".join(found) or "none", advice if lacking else "")]


def _offload() -> list[Fact]:
    if find_spec("deepspeed") is None:
        return []
    from fm.parallel.hardware import can_use_nvme

    ready = can_use_nvme()
    advice = "" if ready else "to NVMe it needs g++, ninja and libaio: apt install libaio-dev"
    return [Fact("Offload", "to host memory and NVMe" if ready else "to host memory", advice)]


def _slurm() -> list[Fact]:
    if (sbatch := shutil.which("sbatch")) is None:
        return [Fact("Slurm", "no sbatch here", "submit from a login node of the cluster")]
    return [Fact("Slurm", sbatch)]


def _storage() -> list[Fact]:
    facts = []
    for name, package, keys, folder in (
        ("S3", "s3fs", "AWS_ACCESS_KEY_ID", ".aws"),
        ("Google Cloud", "gcsfs", "GOOGLE_APPLICATION_CREDENTIALS", ".config/gcloud"),
    ):
        if find_spec(package) is None:
            facts.append(Fact(name, f"{package} missing", 'pip install -e ".[cloud]" -c constraints.txt'))
        else:
            known = keys in os.environ or (Path.home() / folder).is_dir()
            facts.append(Fact(name, f"{package} {version(package)}", "" if known else f"no credentials: set {keys}"))
    return facts


def _git() -> list[Fact]:
    try:
        said = subprocess.run(["git", "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return [Fact("git", "missing", "install git, so that runs record the commit they were made with")]
    return [Fact("git", said.strip().removeprefix("git version "))]
