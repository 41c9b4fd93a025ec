"""What DeepSpeed is told; what it then does is tested by the runs in tests/pretrain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

from fm.config.trainer import Device, Offload, Precision, TrainerConfig
from fm.parallel.strategy import engine_config, make_strategy


def told(config: TrainerConfig, precision: Precision = Precision.fp32, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"device": Device.cuda, "micro_batch_size": 4, "accumulation": 1, "clip_norm": 3.0}
    return engine_config(config, precision=precision, **{**options, **changes})


def parsed(config: dict[str, Any]) -> DeepSpeedConfig:
    """DeepSpeed's own reading, which refuses unknown keys of the ZeRO section."""
    return DeepSpeedConfig({**config, "gradient_accumulation_steps": 1})


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_stage_and_clipping(stage: int) -> None:
    found = parsed(told(TrainerConfig(stage=stage)))
    assert found.zero_optimization_stage == stage
    # Without ZeRO the training module clips itself.
    assert found.gradient_clipping == (3.0 if stage else 0.0)
    assert not found.bfloat16_config.enabled and not found.float16_config.enabled


def test_the_cpu_overlaps_nothing() -> None:
    assert told(TrainerConfig(stage=3))["zero_optimization"]["overlap_comm"] is True
    assert told(TrainerConfig(stage=3), device=Device.cpu)["zero_optimization"]["overlap_comm"] is False


def test_bf16_looks_for_overflow_and_sums_micro_batches_in_float32() -> None:
    assert told(TrainerConfig(), Precision.bf16)["bf16"] == {"enabled": True, "check_grad_overflow": True}
    assert "data_types" not in told(TrainerConfig(), Precision.bf16)
    for precision in (Precision.bf16, Precision.fp16):
        assert told(TrainerConfig(), precision, accumulation=2)["data_types"] == {"grad_accum_dtype": "fp32"}
    assert "data_types" not in told(TrainerConfig(), Precision.fp32, accumulation=2)


def test_fp16_scales_its_loss_dynamically() -> None:
    found = parsed(told(TrainerConfig(), Precision.fp16)).float16_config
    assert found.enabled and found.loss_scale == 0 and found.initial_scale_power == 16
    assert DynamicLossScaler(**found.dynamic_loss_scale_args(), dtype=torch.half).cur_scale == 2**16


def test_offload_to_host_memory_steps_with_torchs_optimizer() -> None:
    config = TrainerConfig(stage=3, offload_optimizer=Offload.cpu, offload_parameters=Offload.cpu)
    found = told(config)
    assert found["zero_force_ds_cpu_optimizer"] is False
    zero = parsed(found).zero_config
    assert zero.offload_optimizer.device == "cpu" and zero.offload_param.device == "cpu"
    assert zero.offload_optimizer.pin_memory and zero.offload_param.pin_memory
    assert not parsed(told(config, device=Device.cpu)).zero_config.offload_optimizer.pin_memory
    assert "zero_force_ds_cpu_optimizer" not in told(TrainerConfig(stage=3))


def test_parameters_on_nvme_leave_host_memory() -> None:
    """Not run anywhere yet: no machine at hand has both a GPU and libaio."""
    config = TrainerConfig(stage=3, offload_parameters=Offload.nvme, nvme_path="/scratch")
    zero = parsed(told(config)).zero_config
    assert zero.offload_param.device == "nvme" and str(zero.offload_param.nvme_path) == "/scratch"
    assert zero.offload_param.max_in_cpu == 0 and zero.offload_optimizer is None


def test_lightning_takes_the_configuration_as_it_stands() -> None:
    config = TrainerConfig(stage=3, collective_timeout_s=77)
    options: dict[str, Any] = {"micro_batch_size": 4, "accumulation": 1, "clip_norm": 3.0}
    strategy = make_strategy(config, precision=Precision.bf16, device=Device.cpu, **options)
    expected = engine_config(config, precision=Precision.bf16, device=Device.cpu, **options)
    assert strategy.config == expected and strategy.zero_stage_3
    assert strategy._timeout is not None and strategy._timeout.total_seconds() == 77
