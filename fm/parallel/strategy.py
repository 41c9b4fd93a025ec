"""Lightning's DeepSpeed strategy, on CUDA and on the CPU."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy

from fm.config.trainer import Device, Offload, Precision, TrainerConfig

BUCKET_ELEMENTS = 50_000_000
"""Elements per reduction or gather: one collective for a small model, bounded memory for a large one."""
_LIGHTNING_PRECISION: dict[Precision, Any] = {
    Precision.fp32: "32-true",
    Precision.bf16: "bf16-mixed",
    Precision.fp16: "16-mixed",
}


class EnginePrecision(DeepSpeedPrecision):
    """DeepSpeed's number format without Lightning's cast of the batch: positions in mm do not survive bf16."""

    def convert_input(self, data: Any) -> Any:
        """Leave the batch as it is."""
        return data


class EngineStrategy(DeepSpeedStrategy):
    """DeepSpeed on CUDA; the module drives the engine itself, in DeepSpeed's forward, backward, step order."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module's step itself: it calls the engine, Lightning would call it from inside the engine."""
        module = self.lightning_module
        if module is None:
            raise RuntimeError("training_step before the strategy was set up")
        return module.training_step(*args, **kwargs)

    def _setup_model_and_optimizer(self, model: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        # DeepSpeed casts float buffers with the weights; tables such as rotary frequencies must stay float32.
        buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
        if self.zero_stage_3 and self.config is not None:
            # Vectors stay whole on every rank and matrices are cut; DeepSpeed's own bound is meant for larger models.
            largest = max((p.numel() for p in model.parameters() if p.ndim < 2), default=0)
            self.config["zero_optimization"]["stage3_param_persistence_threshold"] = largest
        with _broadcast_of_scalars():
            engine = super()._setup_model_and_optimizer(model, *args, **kwargs)
        for name, buffer in model.named_buffers():
            if buffer.dtype != buffers[name].dtype:
                buffer.data = buffers[name].to(buffer.device)
        return engine


class CpuEngineStrategy(EngineStrategy):
    """The same on CPU processes over gloo, which Lightning's own strategy refuses."""

    def setup_environment(self) -> None:
        """Skip the CUDA check of the parent."""
        if self.accelerator is None:
            raise RuntimeError("the strategy has no accelerator")
        self.accelerator.setup_device(self.root_device)
        self.setup_distributed()

    def setup_distributed(self) -> None:
        """Join the gloo group."""
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    def root_device(self) -> torch.device:
        """The CPU, with the local rank as its index: DeepSpeed wants one."""
        return torch.device("cpu", self.local_rank)


@contextmanager
def _broadcast_of_scalars() -> Iterator[None]:
    """Let DeepSpeed broadcast scalar parameters: 0.19.8 views each weight as bytes, which fails for a scalar."""
    from deepspeed.runtime.engine import DeepSpeedEngine

    original = DeepSpeedEngine._broadcast_model

    def broadcast(engine: Any) -> None:
        scalars = [parameter for parameter in engine.module.parameters() if parameter.ndim == 0]
        for parameter in scalars:
            parameter.data = parameter.data.view(1)
        original(engine)
        for parameter in scalars:
            parameter.data = parameter.data.view(())

    DeepSpeedEngine._broadcast_model = broadcast
    try:
        yield
    finally:
        DeepSpeedEngine._broadcast_model = original


def make_strategy(
    config: TrainerConfig,
    *,
    precision: Precision,
    device: Device,
    micro_batch_size: int,
    accumulation: int,
    clip_norm: float,
) -> EngineStrategy:
    """The strategy for one ZeRO stage, with its precision plugin; see :func:`engine_config` for the arguments."""
    import deepspeed

    deepspeed.utils.logging.logger.setLevel(logging.WARNING)
    options: dict[str, Any] = {
        "config": engine_config(
            config,
            precision=precision,
            device=device,
            micro_batch_size=micro_batch_size,
            accumulation=accumulation,
            clip_norm=clip_norm,
        ),
        "precision_plugin": EnginePrecision(_LIGHTNING_PRECISION[precision]),
        "timeout": timedelta(seconds=config.collective_timeout_s),
    }
    if device is Device.cpu:
        return CpuEngineStrategy(**options, process_group_backend="gloo")
    return EngineStrategy(**options)


def engine_config(
    config: TrainerConfig,
    *,
    precision: Precision,
    device: Device,
    micro_batch_size: int,
    accumulation: int,
    clip_norm: float,
) -> dict[str, Any]:
    """What DeepSpeed is told.

    Args:
        config: ZeRO stage and offload.
        precision: fp32, bf16 or fp16, resolved.
        device: cpu or cuda, resolved.
        micro_batch_size: studies per rank and forward pass (DeepSpeed only counts with it).
        accumulation: micro-batches per step; from two on, gradients in half precision are summed in float32.
        clip_norm: largest global gradient norm; 0 for none.
    """
    on_cpu = device is Device.cpu
    told: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        # Without ZeRO the training module clips: DeepSpeed's own clipping fails on scalar parameters there.
        "gradient_clipping": clip_norm if config.stage > 0 else 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": config.stage,
            # On the CPU nothing overlaps; the side stream would only cost.
            "overlap_comm": not on_cpu,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
            **_offload(config, pin_memory=not on_cpu),
        },
    }
    if config.offload_optimizer is not Offload.none:
        # torch's AdamW steps on the CPU as well; DeepSpeed's own would be compiled on first use, for minutes.
        told["zero_force_ds_cpu_optimizer"] = False
    if precision is Precision.bf16:
        told["bf16"] = {"enabled": True, "check_grad_overflow": True}
    elif precision is Precision.fp16:
        # 0: the scale is found while training. It starts at 2^16, and each step that overflows is skipped.
        told["fp16"] = {"enabled": True, "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000}
    if precision is not Precision.fp32 and accumulation > 1:
        told["data_types"] = {"grad_accum_dtype": "fp32"}
    return told


def _offload(config: TrainerConfig, *, pin_memory: bool) -> dict[str, Any]:
    """The part of the ZeRO section that says what waits elsewhere."""
    told: dict[str, Any] = {}
    if config.offload_optimizer is not Offload.none:
        told["offload_optimizer"] = {"device": config.offload_optimizer.value, "pin_memory": pin_memory}
    if config.offload_parameters is not Offload.none:
        told["offload_param"] = {"device": config.offload_parameters.value, "pin_memory": pin_memory}
    if config.offload_parameters is Offload.nvme:
        # None stay in host memory: DeepSpeed's own bound of 10^9 elements would leave all of these models there.
        told["offload_param"] |= {"nvme_path": config.nvme_path, "max_in_cpu": 0}
    return told
