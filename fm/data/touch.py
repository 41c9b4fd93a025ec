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


def touch(patches_TP: Tensor, gain: float, noise: float, numbers: Tensor) -> Tensor:
    """Patches times `gain`, air (−1) staying air, plus `noise` times the first of the numbers; a copy."""
    after = torch.add(patches_TP.new_tensor(gain - 1), patches_TP, alpha=gain)
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
    parts, bank = [], noise_bank(str(view.patches_TP.device))
    for patches, todo in zip(view.patches_TP.split(view.lengths), late, strict=True):
        fielded = patches if todo.field_444 is None else _with_field(patches, todo)
        parts.append(touch(fielded, todo.gain, todo.noise, bank[todo.place :]))
    return replace(view, patches_TP=torch.cat(parts)) if parts else view


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
