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

from fm.config.trainer import Device, Precision

BUCKET_ELEMENTS = 50_000_000
"""Elements per reduction or gather: one collective for a small model, bounded memory for a large one."""


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
    *,
    stage: int,
    precision: Precision,
    device: Device,
    micro_batch_size: int,
    accumulation: int,
    clip_norm: float,
    timeout_s: int,
) -> EngineStrategy:
    """The strategy for one ZeRO stage, with its precision plugin.

    Args:
        stage: ZeRO stage, 0–2.
        precision: fp32 or bf16, resolved.
        device: cpu or cuda, resolved.
        micro_batch_size: studies per rank and forward pass (DeepSpeed only counts with it).
        accumulation: micro-batches per step; from two on, bf16 gradients are summed in float32.
        clip_norm: largest global gradient norm; 0 for none.
        timeout_s: seconds that a collective may wait.
    """
    import deepspeed

    deepspeed.utils.logging.logger.setLevel(logging.WARNING)
    on_cpu = device is Device.cpu
    plugin = EnginePrecision("bf16-mixed" if precision is Precision.bf16 else "32-true")
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        # Without ZeRO the training module clips: DeepSpeed's own clipping fails on scalar parameters there.
        "gradient_clipping": clip_norm if stage > 0 else 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": stage,
            # On the CPU nothing overlaps; the side stream would only cost.
            "overlap_comm": not on_cpu,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
        },
    }
    if precision is Precision.bf16:
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        if accumulation > 1:
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    options: dict[str, Any] = {"config": config, "precision_plugin": plugin, "timeout": timedelta(seconds=timeout_s)}
    return CpuEngineStrategy(**options, process_group_backend="gloo") if on_cpu else EngineStrategy(**options)
