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
    torch.testing.assert_close(stem(patches), conv.flatten(1), rtol=1e-5, atol=1e-5)


def test_conv_stem_is_two_strided_convolutions() -> None:
    torch.manual_seed(0)
    stem = ConvStem(PATCH, CELL, 5, 7)
    patches = torch.randn(3, 4 * 8 * 6)
    cells = F.conv3d(patches.view(3, 1, *PATCH), stem.cell.weight.view(5, 1, *CELL), stem.cell.bias, stride=CELL)
    hidden = F.gelu(cells)  # (3, 5, 2, 2, 3)
    kernel = stem.linear.weight.view(7, 2, 2, 3, 5).permute(0, 4, 1, 2, 3)
    want = F.conv3d(hidden, kernel, stem.linear.bias).flatten(1)
    torch.testing.assert_close(stem(patches), want, rtol=1e-5, atol=1e-5)
