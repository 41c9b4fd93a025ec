"""What the machine can compute with: device, number format."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from fm.config.errors import ConfigError
from fm.config.trainer import Device, Offload, Precision, TrainerConfig


def resolve_device(config: TrainerConfig) -> Device:
    """The device that `trainer.device` means on this machine.

    Raises:
        ConfigError: CUDA is asked for and absent.
    """
    available = torch.cuda.is_available()
    if config.device is Device.cuda and not available:
        raise ConfigError(
            "trainer.device=cuda, but torch sees no CUDA device: use trainer.device=auto, or run `fm doctor`"
        )
    if config.device is Device.auto:
        return Device.cuda if available else Device.cpu
    return config.device


def resolve_precision(config: TrainerConfig) -> Precision:
    """The number format that `trainer.precision` means on this machine: never ``auto``.

    ``auto`` is fp32 at ZeRO-0 (bf16 would have no float32 masters there), else bf16 where the hardware has it.

    Raises:
        ConfigError: fp16 is asked for on the CPU.
    """
    if config.precision is Precision.fp16 and resolve_device(config) is Device.cpu:
        raise ConfigError(
            "trainer.precision=fp16 needs CUDA, and torch sees no such device: use trainer.precision=auto, bf16 or fp32"
        )
    if config.precision is not Precision.auto:
        return config.precision
    if config.stage == 0:
        return Precision.fp32
    native = torch.cuda.is_bf16_supported() if resolve_device(config) is Device.cuda else cpu_has_bf16()
    return Precision.bf16 if native else Precision.fp32


def require_offload(config: TrainerConfig) -> None:
    """Look for what offloading to disk needs; host memory needs nothing.

    Raises:
        ConfigError: DeepSpeed cannot build its reader of disks here.
    """
    if config.offload_parameters is Offload.nvme and not can_use_nvme():
        raise ConfigError(
            "trainer.offload_parameters=nvme: DeepSpeed's async_io is built on first use and needs g++, ninja and "
            "libaio (apt install libaio-dev); or use trainer.offload_parameters=cpu"
        )


def can_use_nvme() -> bool:
    """Whether DeepSpeed can build what reads and writes parameters on disk."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    tools = shutil.which("g++") is not None and shutil.which("ninja") is not None
    return tools and bool(AsyncIOBuilder().is_compatible(verbose=False))


def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU multiplies bf16 natively (AVX512-BF16, AMX or Arm BF16); False where that cannot be read."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(value.split()))
    return False
