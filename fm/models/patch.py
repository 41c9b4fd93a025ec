"""Patches to tokens."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fm.batch import PackedTokens
from fm.config.errors import UserError
from fm.data.sample import Contrast
from fm.models.pool import mean_max
from fm.models.position import FourierPosition

Sizes = tuple[int, int, int]


class LinearStem(nn.Module):
    """One linear map of all voxels of a patch: the ViT patch embedding, a convolution with kernel = stride = patch."""

    def __init__(self, patch_voxels: tuple[int, int, int], dim: int) -> None:
        super().__init__()
        self.patch_voxels = patch_voxels
        self.linear = nn.Linear(math.prod(patch_voxels), dim)

    def forward(self, patches_TP: Tensor, views: PackedTokens, sequence_T: Tensor) -> Tensor:
        """(T, P) voxels to (T, dim) tokens, by the same map whatever the series."""
        out: Tensor = self.linear(patches_TP)
        return out

    @torch.no_grad()
    def resize(self, patch_voxels: Sizes) -> None:
        """Take patches of another size from now on, by :func:`resample_weight`."""
        self.linear.weight = nn.Parameter(resample_weight(self.linear.weight, self.patch_voxels, patch_voxels))
        self.linear.in_features, self.patch_voxels = math.prod(patch_voxels), patch_voxels


def resample_weight(weight_DP: Tensor, old: Sizes, new: Sizes) -> Tensor:
    """The linear patch embedding for patches of another size: FlexiViT's pseudo-inverse resize (arXiv 2212.08013).

    With B the resize of a patch (linear along each axis, with a triangle filter where it shrinks), the result ŵ is
    that with ⟨ŵ, B x⟩ nearest to ⟨w, x⟩ over white x: equal for every x where no axis shrinks. B is a Kronecker product
    of the axes' own resizes, so its pseudo-inverse is that of each axis in turn, in float64.

    Args:
        weight_DP: (D, P) weights for patches of `old` voxels.
        old: (D, H, W) voxels of the patch that the weights know.
        new: (D, H, W) voxels of the patch wanted.

    Returns:
        (D, P') weights; for equal sizes `weight_DP` itself.
    """
    if old == new:
        return weight_DP
    out = weight_DP.double().unflatten(1, old)
    for a, b in zip(old, new, strict=True):
        # Takes the first axis that is still old, and puts it last: after three turns the order is the old one.
        out = torch.tensordot(out, torch.linalg.pinv(resize_matrix(a, b)).to(out.device), dims=([1], [0]))
    resampled: Tensor = out.flatten(1).to(weight_DP.dtype)
    return resampled


def resize_matrix(old: int, new: int) -> Tensor:
    """(new, old) float64: linear interpolation of `old` samples at `new` places, smoothed where it shrinks."""
    centre_N1 = ((torch.arange(new, dtype=torch.float64) + 0.5) * old / new).unsqueeze(1)
    away_NO = (torch.arange(old, dtype=torch.float64) + 0.5 - centre_N1).abs() / max(old / new, 1.0)
    weight_NO = (1 - away_NO).clamp(min=0)
    matrix: Tensor = weight_NO / weight_NO.sum(1, keepdim=True)
    return matrix


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
        self.cell_voxels = cell_voxels
        self.resize(patch_voxels)
        self.cell = nn.Linear(math.prod(cell_voxels), channels)
        self.film = nn.Embedding(len(Contrast), 2 * channels)
        self.place = FourierPosition(2 * channels, *periods_mm)
        self.mix = nn.Linear(channels, channels)
        self.linear = nn.Linear(2 * channels, dim)

    def resize(self, patch_voxels: Sizes) -> None:
        """Take patches of another size from now on: more or fewer cells, by the same weights.

        Raises:
            UserError: the cells do not divide such a patch.
        """
        if any(p % c for p, c in zip(patch_voxels, self.cell_voxels, strict=True)):
            raise UserError(f"patch_voxels={list(patch_voxels)}: must be multiples of the cells, {self.cell_voxels}")
        self.split = tuple(n for p, c in zip(patch_voxels, self.cell_voxels, strict=True) for n in (p // c, c))
        self.patch_voxels = patch_voxels

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
