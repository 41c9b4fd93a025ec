"""What an attempt ran on: packages, driver, topology."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import psutil
import torch

from fm.engine.verdict import write_atomically
from fm.parallel.collectives import gather_objects, rank

ENVIRONMENT = "environment"
_DRIVER = Path("/proc/driver/nvidia/version")


def record_environment(run_dir: Path, attempt: str) -> None:
    """Write ``environment/attempt-A.json``; a collective. It names no host, user or path."""
    ranks = gather_objects(_device())
    if rank() != 0:
        return
    folder = run_dir / ENVIRONMENT
    folder.mkdir(exist_ok=True)
    facts = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "torch": {"version": torch.__version__, "cuda": torch.version.cuda, "nccl": _nccl()},
        "driver": _DRIVER.read_text().splitlines()[0] if _DRIVER.is_file() else None,
        "topology": {
            "ranks": len(ranks),
            "nodes": int(os.environ.get("GROUP_WORLD_SIZE", "1")),
            "ranks_per_node": int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
            "gpu_links": _gpu_links() if _DRIVER.is_file() else None,
        },
        "ranks": ranks,
        "packages": sorted({f"{found.metadata['Name']}=={found.version}" for found in distributions()}, key=str.lower),
    }
    write_atomically(folder / f"attempt-{attempt}.json", (json.dumps(facts, indent=1) + "\n").encode())


def _device() -> dict[str, Any]:
    """What this rank computes with."""
    facts: dict[str, Any] = {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
    }
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
        facts |= {"gpu": gpu.name, "gpu_memory_gb": round(gpu.total_memory / 2**30, 1)}
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpu_links() -> list[str] | None:
    """How the GPUs of rank 0's machine are linked to each other and to network cards, as ``nvidia-smi`` draws it."""
    try:
        done = subprocess.run(["nvidia-smi", "topo", "-m"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return [re.sub(r"\x1b\[\d*m", "", line).rstrip() for line in done.stdout.splitlines() if line.strip()]


def _nccl() -> str | None:
    return ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else None
