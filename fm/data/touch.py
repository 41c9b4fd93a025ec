"""Gain, noise and bias field of a view: what changes each voxel by itself, so that it may wait for the model's device.

The loader draws the numbers, and computes with them or leaves that to :func:`finish`; the arithmetic is the same.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fm.batch import Late, PackedTokens, StudyBatch

NOISE_BANK = 2**20
"""Normal numbers that noise is taken from, at a random place: fresh ones cost more than the rest of a view."""


@functools.lru_cache(maxsize=2)
def noise_bank(device: str = "cpu") -> Tensor:
    """(NOISE_BANK,) float32 normal numbers, the same in every process."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal(NOISE_BANK, dtype=np.float32)).to(device)


def touch(patches_TP: Tensor, gain: float, noise: float, numbers: Tensor, out: Tensor | None = None) -> Tensor:
    """Patches times `gain`, air (−1) staying air, plus `noise` times the first of the numbers; a copy, or in `out`."""
    after = torch.add(patches_TP.new_tensor(gain - 1), patches_TP, alpha=gain, out=out)
    if noise > 0:
        after.view(-1).add_(numbers[: after.numel()], alpha=noise)
    return after


def finish(batch: StudyBatch) -> StudyBatch:
    """The batch with what its views still lack, computed where its tensors are."""
    if not batch.late:
        return batch
    views = {name: _finished(view, batch.late[name]) for name, view in batch.views.items()}
    return replace(batch, views=views, late={})


def _finished(view: PackedTokens, late: list[Late]) -> PackedTokens:
    done, lengths = torch.empty_like(view.patches_TP), view.lengths
    for patches, out, todo in zip(view.patches_TP.split(lengths), done.split(lengths), late, strict=True):
        complete(patches, todo, out)
    return replace(view, patches_TP=done)


def complete(patches_TP: Tensor, late: Late, out: Tensor) -> None:
    """Write to `out` the patches of one sequence with what they lack."""
    fielded = patches_TP if late.field_444 is None else _with_field(patches_TP, late)
    touch(fielded, late.gain, late.noise, noise_bank(str(out.device))[late.place :], out)


def _with_field(patches_TP: Tensor, late: Late) -> Tensor:
    """Times the exponential of a polynomial of third order, evaluated at the voxels of each patch."""
    assert late.field_444 is not None
    powers = torch.arange(4, device=patches_TP.device)
    corner_T3 = torch.from_numpy(late.corner_T3).to(patches_TP)
    d, h, w = (
        (corner_T3[:, axis, None] + late.pitch[axis] * torch.arange(size).to(patches_TP)).unsqueeze(2) ** powers
        for axis, size in enumerate(late.patch_voxels)
    )
    rows = torch.einsum("tdi,ijk->tdjk", d, torch.from_numpy(late.field_444).to(patches_TP))
    rows = torch.einsum("tdjk,thj->tdhk", rows, h)
    field_TP = torch.einsum("tdhk,twk->tdhw", rows, w).exp().flatten(1)
    return (patches_TP + 1) * field_TP - 1
