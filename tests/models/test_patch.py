from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F

from fm.batch import PackedTokens
from fm.models.patch import ConvStem, LinearStem

PATCH, CELL = (4, 8, 6), (2, 4, 2)


def test_linear_stem_is_a_convolution_with_kernel_and_stride_of_a_patch() -> None:
    torch.manual_seed(0)
    stem = LinearStem(PATCH, 7)
    patches = torch.randn(3, 4 * 8 * 6)
    conv = F.conv3d(patches.view(3, 1, *PATCH), stem.linear.weight.view(7, 1, *PATCH), stem.linear.bias, stride=PATCH)
    torch.testing.assert_close(
        stem(patches, _views([3]), torch.zeros(3, dtype=torch.int64)), conv.flatten(1), rtol=1e-5, atol=1e-5
    )


def _views(lengths: list[int]) -> PackedTokens:
    g = torch.Generator().manual_seed(1)
    series, tokens = len(lengths), sum(lengths)
    return PackedTokens(
        patches_TP=torch.rand(tokens, 4 * 8 * 6, generator=g),
        position_T3=80 * torch.randn(tokens, 3, generator=g),
        offsets_S1=torch.tensor([0, *lengths]).cumsum(0),
        contrast_S=torch.tensor([4, 0])[:series],
        plane_S=torch.zeros(series, dtype=torch.int64),
        agent_S=torch.zeros(series, dtype=torch.int64),
        step_S33=torch.randn(series, 3, 3, generator=g),
        study_S=torch.arange(series),
    )


def test_conv_stem_pools_cells_that_know_their_contrast_and_their_place_and_leaves_out_air() -> None:
    """Against one cell at a time, in loops."""
    torch.manual_seed(0)
    stem, views = ConvStem(PATCH, CELL, 5, 7, (60.0, 1000.0)), _views([2, 3])
    torch.nn.init.normal_(stem.film.weight)
    blocks = views.patches_TP.view(5, *PATCH)
    blocks[0, :2] = -1.0
    blocks[3] = -1.0
    blocks[3, 0, 0, 0] = 0.5
    sequence = [0, 0, 1, 1, 1]
    want = []
    for token, block in enumerate(blocks):
        step = views.step_S33[sequence[token]]
        cells = []
        for d, h, w in itertools.product(range(0, 4, 2), range(0, 8, 4), range(0, 6, 2)):
            cell = block[d : d + 2, h : h + 4, w : w + 2]
            if cell.mean() < -0.9 and token != 3:  # a patch without any cell of tissue keeps all
                continue
            middle = torch.tensor([d + 1 - 2.0, h + 2 - 4.0, w + 1 - 3.0])
            place = views.position_T3[token] + middle[0] * step[0] + middle[1] * step[1] + middle[2] * step[2]
            film = stem.film.weight[views.contrast_S[sequence[token]]] + stem.place(place[None])[0]
            hidden = F.gelu(stem.cell(cell.flatten()) * (1 + film[:5]) + film[5:])
            cells.append(hidden + F.gelu(stem.mix(hidden)))
        stacked = torch.stack(cells)
        want.append(stem.linear(torch.cat([stacked.amax(0), stacked.mean(0)])))
    found = stem(views.patches_TP, views, torch.tensor(sequence))
    torch.testing.assert_close(found, torch.stack(want), rtol=1e-4, atol=1e-5)


def test_conv_stem_does_not_mix_tokens() -> None:
    torch.manual_seed(0)
    stem, views = ConvStem(PATCH, CELL, 5, 7, (60.0, 1000.0)), _views([2, 3])
    sequence = torch.tensor([0, 0, 1, 1, 1])
    before = stem(views.patches_TP, views, sequence)
    views.patches_TP[1] += 1
    changed = (stem(views.patches_TP, views, sequence) - before).abs().amax(1) > 0
    assert changed.tolist() == [False, True, False, False, False]
