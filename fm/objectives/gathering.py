"""Rows of all ranks, as the losses see them; this room never touches torch.distributed itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Gather = Callable[[Tensor], Tensor]
"""Rows of all ranks, in rank order; see :mod:`fm.objectives`."""


def local_gather(x: Tensor) -> Tensor:
    """The gather of a single process."""
    return x


def gather_rows(x_SD: Tensor, gather: Gather) -> Tensor:
    """Rows of all ranks where each rank has its own number: padded to the longest, gathered, padding dropped."""
    counts = gather(torch.tensor([x_SD.shape[0]], device=x_SD.device)).tolist()
    longest = max(counts)
    padded = gather(F.pad(x_SD, (0, 0, 0, longest - x_SD.shape[0])))
    return torch.cat([part[:n] for part, n in zip(padded.split(max(longest, 1)), counts, strict=False)] or [padded])


def mean_over_ranks(each_S: Tensor, gather: Gather) -> Tensor:
    """The mean over the rows of all ranks, scaled so that the mean over ranks is that of the joined batch."""
    counts = gather(each_S.new_tensor([float(len(each_S))]))
    return each_S.sum() * len(counts) / counts.sum().clamp(min=1)
