"""The float32 master weights behind an engine's parameters, read in one collective."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fm.parallel.collectives import all_gather_flat, world_size


class Masters:
    """Reads the full float32 master of every trainable parameter, the same on every rank.

    DeepSpeed's own ``safe_get_full_fp32_param`` costs one all-reduce per tensor; a small model has a hundred of them.
    ZeRO-1 and ZeRO-2 lay the parameters of a group end to end in one vector and give each rank an equal part of its
    master, so one gather per group and a view per parameter give the same numbers (a test compares the two).
    """

    def __init__(self, engine: Any, module: nn.Module) -> None:
        """Find where the masters live.

        Args:
            engine: the DeepSpeed engine, after its optimiser was built.
            module: the part of the engine's module whose masters are wanted; names are relative to it.
        """
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._partitions: list[Tensor] = []
        self._flats: list[Tensor] = []
        self._views: dict[str, Tensor] = {}
        if next(iter(self._parameters.values())).dtype != torch.float32:
            self._map_groups(engine.optimizer)

    def read(self) -> dict[str, Tensor]:
        """Name → float32 master; views into buffers that the next call overwrites. A collective."""
        if not self._views:
            # fp32: every rank's parameters are the masters, DeepSpeed gathers them after each step.
            return {name: p.detach() for name, p in self._parameters.items()}
        for partition, flat in zip(self._partitions, self._flats, strict=True):
            all_gather_flat(partition.detach(), flat)
        return self._views

    def _map_groups(self, optimizer: Any) -> None:
        # ZeRO-1 with float32 sums of bf16 gradients is DeepSpeed's BF16_Optimizer: same layout, other names.
        if hasattr(optimizer, "single_partition_of_fp32_groups"):
            self._partitions = list(optimizer.single_partition_of_fp32_groups)
            low_flats = list(optimizer.bit16_groups_flat)
        else:
            self._partitions = list(optimizer.fp32_groups_flat_partition)
            low_flats = list(optimizer.bf16_groups_flat)
        self._flats = [p.new_empty(p.numel() * world_size(), requires_grad=False) for p in self._partitions]
        for name, parameter in self._parameters.items():
            for low, flat in zip(low_flats, self._flats, strict=True):
                offset = (parameter.data_ptr() - low.data_ptr()) // low.element_size()
                if 0 <= offset < low.numel() and flat.numel() == low.numel():
                    self._views[name] = flat[offset : offset + parameter.numel()].view(parameter.shape)
                    break
            else:
                raise RuntimeError(f"parameter {name} lies in no optimiser group: DeepSpeed's layout has changed")
