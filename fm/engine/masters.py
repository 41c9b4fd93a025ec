"""The float32 master weights behind an engine's parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fm.parallel.collectives import all_gather_flat, world_size
from fm.parallel.slices import own_slice, size_of


class Masters:
    """Reads the float32 master of every trainable parameter.

    DeepSpeed's own ``safe_get_full_fp32_param`` costs one all-reduce per tensor; a small model has a hundred of them.
    ZeRO-1 and ZeRO-2 lay the parameters of a group end to end in one vector and give each rank an equal part of its
    master, so one gather per group and a view per parameter give the same numbers (a test compares the two). ZeRO-3
    gives each rank a slice of every parameter; no rank has room for all of them, so the teacher is fed with slices,
    and whole masters come one at a time.
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
        self._cut: bool = engine.zero_optimization_partition_weights()
        if not self._cut and next(iter(self._parameters.values())).dtype != torch.float32:
            self._map_groups(engine.optimizer)

    def read(self) -> dict[str, Tensor]:
        """Name → float32 master, in memory that the next call or step overwrites.

        Whole, on every rank alike, and a collective; at ZeRO-3 this rank's flat slice, without a collective.
        """
        if self._cut:
            return {name: self._own(p) for name, p in self._parameters.items()}
        if not self._views:
            # fp32: every rank's parameters are the masters, DeepSpeed gathers them after each step.
            return {name: p.detach() for name, p in self._parameters.items()}
        for partition, flat in zip(self._partitions, self._flats, strict=True):
            all_gather_flat(partition.detach().to(flat.device), flat)
        return self._views

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """Name and whole master, one after the other; a collective that every rank must go through to its end."""
        if not self._cut:
            yield from self.read().items()
            return
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in self._parameters.items():
            yield name, safe_get_full_fp32_param(parameter)

    @staticmethod
    def _own(parameter: nn.Parameter) -> Tensor:
        from deepspeed.utils import safe_get_local_fp32_param

        padded: Tensor = safe_get_local_fp32_param(parameter)
        _, length = own_slice(size_of(parameter))
        return padded.detach()[:length]

    def _map_groups(self, optimizer: Any) -> None:
        # ZeRO-1 with float32 sums of bf16 gradients is DeepSpeed's BF16_Optimizer: same layout, other names.
        if hasattr(optimizer, "single_partition_of_fp32_groups"):
            self._partitions = list(optimizer.single_partition_of_fp32_groups)
            low_flats = list(optimizer.bit16_groups_flat)
        else:
            self._partitions = list(optimizer.fp32_groups_flat_partition)
            low_flats = list(optimizer.bf16_groups_flat)
        # Where the optimiser is offloaded its partitions lie in host memory, but ranks and the teacher meet elsewhere.
        self._flats = [
            p.new_empty(p.numel() * world_size(), requires_grad=False, device=low.device)
            for p, low in zip(self._partitions, low_flats, strict=True)
        ]
        for name, parameter in self._parameters.items():
            for low, flat in zip(low_flats, self._flats, strict=True):
                offset = (parameter.data_ptr() - low.data_ptr()) // low.element_size()
                if 0 <= offset < low.numel() and flat.numel() == low.numel():
                    self._views[name] = flat[offset : offset + parameter.numel()].view(parameter.shape)
                    break
            else:
                raise RuntimeError(f"parameter {name} lies in no optimiser group: DeepSpeed's layout has changed")
