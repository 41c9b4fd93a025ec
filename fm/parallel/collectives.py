"""Collectives over all ranks; each is the identity where no process group is up, so one process needs no launcher."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

_waited = 0.0


def seconds_waited() -> float:
    """Seconds that this process has spent in the collectives of this module: what is left is its own work."""
    return _waited


@contextmanager
def _waiting() -> Iterator[None]:
    global _waited
    started = time.perf_counter()
    try:
        yield
    finally:
        _waited += time.perf_counter() - started


def is_distributed() -> bool:
    """Whether a process group is up."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's global rank."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def barrier() -> None:
    """Wait for every rank."""
    if is_distributed():
        with _waiting():
            dist.barrier()


def shutdown() -> None:
    """Close the process group; call it only where every rank does."""
    if is_distributed():
        dist.destroy_process_group()


def any_flags(*flags: bool, device: torch.device | str = "cpu") -> tuple[bool, ...]:
    """Element-wise logical or over ranks, in one collective."""
    if not is_distributed():
        return flags
    votes = torch.tensor(flags, dtype=torch.uint8, device=device)
    with _waiting():
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return tuple(bool(vote) for vote in votes.tolist())


def any_flag(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether the flag is set on any rank."""
    return any_flags(flag, device=device)[0]


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over ranks; no gradient."""
    total = values.detach().clone()
    if is_distributed():
        with _waiting():
            dist.all_reduce(total)
    return total


def broadcast_object(value: Any) -> Any:
    """Rank 0's value, on every rank (pickled between our own processes only)."""
    if not is_distributed():
        return value
    box = [value]
    with _waiting():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Every rank's value, in rank order (pickled between our own processes only)."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    with _waiting():
        dist.all_gather_object(values, value)
    return values


def all_gather_flat(values: Tensor, out: Tensor) -> Tensor:
    """Lay every rank's equally long vector end to end in `out`, in rank order; no gradient."""
    if not is_distributed():
        return out.copy_(values)
    # The older name is deprecated from torch 2.13 on, the newer one absent before.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    with _waiting():
        gather(out, values)
    return out


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(world_size())]
        with _waiting():
            dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # all_reduce and a slice instead of reduce_scatter: gloo has no reduce_scatter for every dtype.
        total = grads[0].contiguous().clone()
        with _waiting():
            dist.all_reduce(total)
        return total.chunk(world_size())[rank()]


def all_gather_with_grad(local: Tensor) -> Tensor:
    """Rows of all ranks in rank order, with the exact gradient.

    Args:
        local: (B, ...) rows of this rank; B must be the same on all ranks.

    Returns:
        (world · B, ...). The gradient of a row is the sum of what *every* rank's loss says about it; together with the
        engine's mean of parameter gradients over ranks, this is the gradient of the mean of the ranks' losses.
    """
    if world_size() == 1:
        return local
    return cast(Tensor, _AllGather.apply(local))  # type: ignore[no-untyped-call]  # torch leaves apply untyped
