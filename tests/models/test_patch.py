from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from fm.batch import PackedTokens
from fm.config.errors import UserError
from fm.models.patch import ConvStem, LinearStem, resample_weight, resize_matrix

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


def _resize(patches: torch.Tensor, new: tuple[int, int, int]) -> torch.Tensor:
    """(n, d, h, w) patches to `new` voxels, by linear interpolation along each axis."""
    out = patches
    for size in new:
        out = torch.tensordot(out, resize_matrix(out.shape[1], size), dims=([1], [1]))
    return out


@pytest.mark.parametrize("new", [(4, 16, 16), (8, 12, 9), (4, 8, 7)])
def test_a_resampled_embedding_of_an_enlarged_patch_is_the_old_one_of_the_patch(new: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    weight, patches = torch.randn(5, 4 * 8 * 6, dtype=torch.float64), torch.randn(3, 4, 8, 6, dtype=torch.float64)
    got = _resize(patches, new).flatten(1) @ resample_weight(weight, (4, 8, 6), new).T
    torch.testing.assert_close(got, patches.flatten(1) @ weight.T, rtol=1e-9, atol=1e-9)


def test_where_a_patch_shrinks_the_resampled_embedding_is_the_nearest_over_white_patches() -> None:
    """The least-squares solution itself: min over ŵ of E‖⟨ŵ, Bx⟩ − ⟨w, x⟩‖², x white, is min ‖Bᵀŵ − w‖²."""
    torch.manual_seed(0)
    weight, unit = torch.randn(5, 4 * 8 * 6, dtype=torch.float64), torch.eye(4 * 8 * 6, dtype=torch.float64)
    resize = _resize(unit.view(-1, 4, 8, 6), (2, 10, 3)).flatten(1)  # (old, new): Bᵀ
    want = torch.linalg.lstsq(resize, weight.T, driver="gelsd").solution.T  # also where one axis grows
    torch.testing.assert_close(resample_weight(weight, (4, 8, 6), (2, 10, 3)), want, rtol=1e-9, atol=1e-9)


def test_resampling_is_exact_at_the_native_size_and_linear_interpolation_at_others() -> None:
    weight = torch.randn(5, 4 * 8 * 6)
    assert resample_weight(weight, PATCH, PATCH) is weight
    assert torch.equal(resize_matrix(5, 5), torch.eye(5, dtype=torch.float64))
    signal = torch.randn(1, 1, 5, dtype=torch.float64)
    want = F.interpolate(signal, size=9, mode="linear", align_corners=False)
    torch.testing.assert_close(signal @ resize_matrix(5, 9).T, want)
    halved = resize_matrix(6, 3)[1] * 8  # the triangle over two coarse samples: 1 3 3 1
    torch.testing.assert_close(halved, torch.tensor([0.0, 1, 3, 3, 1, 0], dtype=torch.float64))


def test_stems_change_their_patch_size() -> None:
    torch.manual_seed(0)
    linear = LinearStem(PATCH, 7)
    want = resample_weight(linear.linear.weight, PATCH, (2, 8, 9))
    linear.resize((2, 8, 9))
    assert torch.equal(linear.linear.weight, want) and linear.linear.in_features == 144
    conv, views = ConvStem(PATCH, CELL, 5, 7, (60.0, 1000.0)), _views([2, 3])
    weights = [p.clone() for p in conv.parameters()]
    conv.resize((2, 8, 6))
    views.patches_TP = views.patches_TP[:, : 2 * 8 * 6]
    alone = ConvStem((2, 8, 6), CELL, 5, 7, (60.0, 1000.0))
    alone.load_state_dict(conv.state_dict())
    sequence = torch.tensor([0, 0, 1, 1, 1])
    assert torch.equal(conv(views.patches_TP, views, sequence), alone(views.patches_TP, views, sequence))
    assert all(torch.equal(a, b) for a, b in zip(conv.parameters(), weights, strict=True))
    with pytest.raises(UserError, match=r"multiples of the cells"):
        conv.resize((3, 8, 6))
