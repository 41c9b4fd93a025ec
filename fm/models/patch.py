"""Patches to tokens."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fm.batch import PackedTokens
from fm.data.sample import Contrast
from fm.models.pool import mean_max
from fm.models.position import FourierPosition


class LinearStem(nn.Module):
    """One linear map of all voxels of a patch: the ViT patch embedding, a convolution with kernel = stride = patch."""

    def __init__(self, patch_voxels: tuple[int, int, int], dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(math.prod(patch_voxels), dim)

    def forward(self, patches_TP: Tensor, views: PackedTokens, sequence_T: Tensor) -> Tensor:
        """(T, P) voxels to (T, dim) tokens, by the same map whatever the series."""
        out: Tensor = self.linear(patches_TP)
        return out


class ConvStem(nn.Module):
    """A small network on every cell of a patch, with shared weights; a patch is the maximum and the mean of its cells.

    Each channel of a cell is scaled and shifted by the contrast and by the cell's own position in mm (FiLM, arXiv
    1709.07871): the same brightness is CSF on one contrast and fat on another, and scalp in one place and a lesion in
    another. Position never adds to what the voxels say, so that no place wins a maximum by itself. Cells of air count
    for nothing. The first map is ``Conv3d(stride=kernel)`` written as a linear map of reshaped patches, without slow
    small kernels; the maximum over points is PointNet's (arXiv 1612.00593).
    """

    air = -0.9
    """Mean voxel value below which a cell is air: air is −1, the darkest tissue −0.8."""

    def __init__(
        self,
        patch_voxels: tuple[int, int, int],
        cell_voxels: tuple[int, int, int],
        channels: int,
        dim: int,
        periods_mm: tuple[float, float],
    ) -> None:
        super().__init__()
        self.split = tuple(n for p, c in zip(patch_voxels, cell_voxels, strict=True) for n in (p // c, c))
        self.cell = nn.Linear(math.prod(cell_voxels), channels)
        self.film = nn.Embedding(len(Contrast), 2 * channels)
        self.place = FourierPosition(2 * channels, *periods_mm)
        self.mix = nn.Linear(channels, channels)
        self.linear = nn.Linear(2 * channels, dim)
        self.patch_voxels, self.cell_voxels = patch_voxels, cell_voxels

    def forward(self, patches_TP: Tensor, views: PackedTokens, sequence_T: Tensor) -> Tensor:
        """(T, P) voxels of `views`, and the sequence of each token, to (T, dim) tokens."""
        cells_TCV = patches_TP.unflatten(1, self.split).permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(1, 3)
        tissue_TC = cells_TCV.float().mean(2) > self.air
        # A patch whose tissue fills no cell by half still has its own.
        tissue_TC = tissue_TC | ~tissue_TC.any(1, keepdim=True)
        # Not a buffer: transformers builds models on the meta device and fills in only what a checkpoint holds.
        centres_C3 = _cell_centres(self.patch_voxels, self.cell_voxels).to(views.step_S33.device)
        offset_SC3 = centres_C3 @ views.step_S33
        place_TC3 = views.position_T3.unsqueeze(1) + offset_SC3.index_select(0, sequence_T)
        rows = tissue_TC.flatten().nonzero().squeeze(1)
        token_N = rows // tissue_TC.shape[1]
        cell_NV = cells_TCV.flatten(0, 1).index_select(0, rows)
        # The gradient of a gather is a sum over cells: float32, or bf16 would round it away.
        film_SF = self.film(views.contrast_S).float()
        film_NF = film_SF.index_select(0, sequence_T.index_select(0, token_N))
        film_NF = film_NF + self.place(place_TC3.flatten(0, 1).index_select(0, rows)).float()
        scale_NK, shift_NK = film_NF.to(cell_NV.dtype).chunk(2, dim=1)
        hidden_NK = F.gelu(torch.addcmul(shift_NK, self.cell(cell_NV), 1 + scale_NK))
        hidden_NK = hidden_NK + F.gelu(self.mix(hidden_NK))
        mean_TK, top_TK = mean_max(hidden_NK, token_N, tissue_TC.shape[0])
        out: Tensor = self.linear(torch.cat([top_TK, mean_TK], 1))
        return out


def _cell_centres(patch_voxels: tuple[int, int, int], cell_voxels: tuple[int, int, int]) -> Tensor:
    """(C, 3) float32: centres of a patch's cells in voxels from the centre of the patch, in the order of the cells."""
    axes = [
        (torch.arange(p // c, dtype=torch.float32) + 0.5) * c - p / 2
        for p, c in zip(patch_voxels, cell_voxels, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)
