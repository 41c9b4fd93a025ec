"""Parameters that lie cut over the ranks, each rank with a slice of every one, as DeepSpeed's ZeRO-3 cuts them.

A parameter of n elements is cut into runs of ⌈n / ranks⌉ elements in rank order; the last ones are shorter, or empty.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fm.parallel.collectives import all_gather_flat, rank, world_size


def own_slice(size: int) -> tuple[int, int]:
    """First element and number of elements of this rank's slice of a flattened parameter of `size` elements."""
    run = -(-size // world_size())
    start = min(rank() * run, size)
    return start, min(run, size - start)


def size_of(parameter: nn.Parameter) -> int:
    """Elements of a parameter, also while DeepSpeed has it cut."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


@contextmanager
def whole_to_write(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Make parameters of the engine whole: afterwards every rank has what rank 0 has written into them; a collective.

    Parameters that DeepSpeed has not cut are left alone.
    """
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0):
        yield


class Sliced:
    """Cuts a network without gradients over the ranks; what a module holds is whole only while that module runs.

    Before the forward pass of a module that has parameters of its own, one all-gather makes them whole, after it they
    are freed. A rank thus holds its slices and the weights of one module. It is exact, and costs one gather of all
    weights a forward pass, which does not overlap with computing. Modules must read their parameters in their own
    forward pass alone, and give no view of them away.
    """

    def __init__(self, network: nn.Module) -> None:
        """Cut it; until its forward pass the parameters of `network` are empty from now on."""
        self._parts = [
            _Part(part, prefix) for prefix, part in network.named_modules() if list(part.parameters(recurse=False))
        ]
        self.own: dict[str, Tensor] = {name: own for part in self._parts for name, own in part.own.items()}
        """Name → this rank's flat slice, to be changed in place."""

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter whole, one module at a time; a collective that every rank must go through to its end."""
        for part in self._parts:
            yield from part.whole()


class _Part:
    """The parameters of one module: their slices lie end to end in one vector, so that one gather brings them all."""

    def __init__(self, module: nn.Module, prefix: str) -> None:
        self._parameters = dict(module.named_parameters(prefix, recurse=False))
        self._shapes = {name: p.shape for name, p in self._parameters.items()}
        self._runs = [-(-p.numel() // world_size()) for p in self._parameters.values()]
        first = next(iter(self._parameters.values()))
        self._flat = torch.zeros(sum(self._runs), dtype=first.dtype, device=first.device)
        self.own: dict[str, Tensor] = {}
        for (name, parameter), place in zip(self._parameters.items(), self._flat.split(self._runs), strict=True):
            start, length = own_slice(parameter.numel())
            self.own[name] = place[:length].copy_(parameter.detach().reshape(-1)[start : start + length])
        module.register_forward_pre_hook(self._gather)
        module.register_forward_hook(self._free, always_call=True)
        self._free()

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        ranks = self._flat.new_empty(world_size() * self._flat.numel())
        pieces = all_gather_flat(self._flat, ranks).view(world_size(), -1).split(self._runs, dim=1)
        for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True):
            yield name, piece.reshape(-1)[: math.prod(shape)].view(shape)

    def _gather(self, *_: Any) -> None:
        for name, value in self.whole():
            self._parameters[name].data = value

    def _free(self, *_: Any) -> None:
        for parameter in self._parameters.values():
            parameter.data = parameter.data.new_empty(0)
