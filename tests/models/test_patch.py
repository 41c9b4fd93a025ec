from __future__ import annotations

import torch
import torch.nn.functional as F

from fm.models.patch import ConvStem, LinearStem

PATCH, CELL = (4, 8, 6), (2, 4, 2)


def test_linear_stem_is_a_convolution_with_kernel_and_stride_of_a_patch() -> None:
    torch.manual_seed(0)
    stem = LinearStem(PATCH, 7)
    patches = torch.randn(3, 4 * 8 * 6)
    conv = F.conv3d(patches.view(3, 1, *PATCH), stem.linear.weight.view(7, 1, *PATCH), stem.linear.bias, stride=PATCH)
    torch.testing.assert_close(stem(patches, torch.zeros(3, dtype=torch.int64)), conv.flatten(1), rtol=1e-5, atol=1e-5)


def test_conv_stem_is_two_strided_convolutions_with_channels_scaled_and_shifted_by_the_contrast() -> None:
    torch.manual_seed(0)
    stem = ConvStem(PATCH, CELL, 5, 7)
    patches = torch.randn(3, 4 * 8 * 6)
    cells = F.conv3d(patches.view(3, 1, *PATCH), stem.cell.weight.view(5, 1, *CELL), stem.cell.bias, stride=CELL)
    contrast = torch.tensor([4, 0, 4])
    scale, shift = stem.film.weight[contrast].view(3, 2, 5, 1, 1, 1).unbind(1)
    hidden = F.gelu(cells * (1 + scale) + shift)  # (3, 5, 2, 2, 3)
    kernel = stem.linear.weight.view(7, 2, 2, 3, 5).permute(0, 4, 1, 2, 3)
    want = F.conv3d(hidden, kernel, stem.linear.bias).flatten(1)
    want = F.layer_norm(want, (7,), eps=1e-6)
    torch.testing.assert_close(stem(patches, contrast), want, rtol=1e-5, atol=1e-5)
