"""Patches to tokens."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fm.data.sample import Contrast


class LinearStem(nn.Module):
    """One linear map of all voxels of a patch: the ViT patch embedding, a convolution with kernel = stride = patch."""

    def __init__(self, patch_voxels: tuple[int, int, int], dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(math.prod(patch_voxels), dim)

    def forward(self, patches_TP: Tensor, contrast_T: Tensor) -> Tensor:
        """(T, P) voxels to (T, dim) tokens, by the same map whatever the contrast."""
        out: Tensor = self.linear(patches_TP)
        return out


class ConvStem(nn.Module):
    """Two non-overlapping convolutions: cells within the patch share weights, then all cells of the patch are mapped.

    Between them each channel is scaled and shifted by the contrast (FiLM, arXiv 1709.07871): the same brightness is CSF
    on one contrast and fat on another. Written as linear maps of reshaped patches: the numbers of
    ``Conv3d(stride=kernel)`` without slow small kernels.
    """

    def __init__(
        self, patch_voxels: tuple[int, int, int], cell_voxels: tuple[int, int, int], channels: int, dim: int
    ) -> None:
        super().__init__()
        self.split = tuple(n for p, c in zip(patch_voxels, cell_voxels, strict=True) for n in (p // c, c))
        self.cell = nn.Linear(math.prod(cell_voxels), channels)
        self.film = nn.Embedding(len(Contrast), 2 * channels)
        self.linear = nn.Linear(math.prod(self.split[::2]) * channels, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, patches_TP: Tensor, contrast_T: Tensor) -> Tensor:
        """(T, P) voxels and (T,) index into :class:`fm.data.sample.Contrast`, to (T, dim) tokens."""
        cells = patches_TP.unflatten(1, self.split).permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(1, 3)
        scale_TC, shift_TC = self.film(contrast_T).unsqueeze(1).chunk(2, dim=2)
        hidden = F.gelu(torch.addcmul(shift_TC, self.cell(cells), 1 + scale_TC))
        out: Tensor = self.norm(self.linear(hidden.flatten(1)))
        return out
