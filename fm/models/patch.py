"""Patches to tokens."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn


class LinearStem(nn.Module):
    """One linear map of all voxels of a patch: the ViT patch embedding, a convolution with kernel = stride = patch."""

    def __init__(self, patch_voxels: tuple[int, int, int], dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(math.prod(patch_voxels), dim)

    def forward(self, patches_TP: Tensor) -> Tensor:
        """(T, P) voxels to (T, dim) tokens."""
        out: Tensor = self.linear(patches_TP)
        return out


class ConvStem(nn.Module):
    """Two non-overlapping convolutions: cells within the patch share weights, then all cells of the patch are mapped.

    Written as linear maps of reshaped patches: the numbers of ``Conv3d(stride=kernel)`` without slow small kernels.
    """

    def __init__(
        self, patch_voxels: tuple[int, int, int], cell_voxels: tuple[int, int, int], channels: int, dim: int
    ) -> None:
        super().__init__()
        self.split = tuple(n for p, c in zip(patch_voxels, cell_voxels, strict=True) for n in (p // c, c))
        self.cell = nn.Linear(math.prod(cell_voxels), channels)
        self.linear = nn.Linear(math.prod(self.split[::2]) * channels, dim)

    def forward(self, patches_TP: Tensor) -> Tensor:
        """(T, P) voxels to (T, dim) tokens."""
        cells = patches_TP.unflatten(1, self.split).permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(1, 3)
        out: Tensor = self.linear(F.gelu(self.cell(cells)).flatten(1))
        return out
