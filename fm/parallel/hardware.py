"""What the machine can compute with: device, number format."""

from __future__ import annotations

from pathlib import Path

import torch

from fm.config.errors import ConfigError
from fm.config.trainer import Device, Precision, TrainerConfig


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
    """
    if config.precision is not Precision.auto:
        return config.precision
    if config.stage == 0:
        return Precision.fp32
    native = torch.cuda.is_bf16_supported() if resolve_device(config) is Device.cuda else cpu_has_bf16()
    return Precision.bf16 if native else Precision.fp32


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
