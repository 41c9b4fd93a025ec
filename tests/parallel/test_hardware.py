from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fm.config.errors import ConfigError
from fm.config.trainer import Device, Offload, Precision, TrainerConfig
from fm.parallel import hardware
from fm.parallel.hardware import can_use_nvme, cpu_has_bf16, require_offload, resolve_device, resolve_precision


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 amx_tile\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("model name\t: bf16 special\n", False),
        ("", False),
    ],
)
def test_bf16_is_read_from_the_cpu_flags(text: str, expected: bool, tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert cpu_has_bf16(path) is expected


def test_an_unreadable_cpuinfo_means_no() -> None:
    assert cpu_has_bf16(Path("/nowhere/cpuinfo")) is False


@pytest.mark.parametrize(("native", "stage", "expected"), [(True, 2, "bf16"), (False, 2, "fp32"), (True, 0, "fp32")])
def test_auto_precision(native: bool, stage: int, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cpu_has_bf16", lambda: native)
    config = TrainerConfig(device=Device.cpu, stage=stage)
    assert resolve_precision(config) == expected
    assert resolve_precision(TrainerConfig(precision=Precision.fp32, device=Device.cpu)) is Precision.fp32


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device(TrainerConfig()) is Device.cpu
    with pytest.raises(ConfigError, match=r"trainer\.device=cuda"):
        resolve_device(TrainerConfig(device=Device.cuda))


def test_nvme_is_refused_where_deepspeed_cannot_build_its_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainerConfig(stage=3, offload_parameters=Offload.nvme, nvme_path="/scratch")
    monkeypatch.setenv("PATH", "")
    assert not can_use_nvme()
    with pytest.raises(ConfigError, match="needs g\\+\\+, ninja and libaio"):
        require_offload(config)
    require_offload(TrainerConfig(stage=3, offload_parameters=Offload.cpu, offload_optimizer=Offload.cpu))


def test_fp16_is_refused_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"trainer\.precision=fp16 needs CUDA"):
        resolve_precision(TrainerConfig(precision=Precision.fp16))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_precision(TrainerConfig(precision=Precision.fp16)) is Precision.fp16
