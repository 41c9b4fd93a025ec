from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from fm.batch import StudyBatch
from fm.config.errors import ConfigError
from fm.config.masking import HiddenPatchesConfig, MasksConfig
from fm.data.plan import keyed_rng
from fm.objectives.masks import draw_mask, draw_masks, masked_counts, visible

GRID = np.stack(np.meshgrid(16 * np.arange(8), 16 * np.arange(9), 20 * np.arange(5), indexing="ij"), -1)
POSITION = GRID.reshape(-1, 3).astype(np.float32)


def _components(mask_N: np.ndarray) -> int:
    """Connected groups of hidden patches, neighbours along an axis."""
    left, groups = set(np.flatnonzero(mask_N)), 0
    while left:
        groups += 1
        edge = [left.pop()]
        while edge:
            away = np.abs(POSITION - POSITION[edge.pop()]) / (16, 16, 20)
            near = [i for i in np.flatnonzero(away.sum(1) < 1.1) if i in left]
            left.difference_update(near)
            edge += near
    return groups


def test_the_share_is_kept_to_the_patch_and_blocks_are_contiguous_boxes_of_the_edges_asked_for() -> None:
    config = MasksConfig(crop_share=1.0, share_min=0.3, share_max=0.3, block_mm_min=60, block_mm_max=90)
    groups = []
    for seed in range(30):
        mask = draw_mask(POSITION, config, keyed_rng("x", seed))
        assert mask.sum() == round(0.3 * len(POSITION))
        groups.append(_components(mask))
    lone = draw_mask(POSITION, HiddenPatchesConfig(share_min=0.3, share_max=0.3), keyed_rng("x", 0))
    assert np.mean(groups) < 4 < _components(lone)
    # A single box: a small share is one block, and no hidden patch is farther than half an edge from its centre.
    few = MasksConfig(crop_share=1.0, share_min=0.02, share_max=0.02, block_mm_min=40, block_mm_max=50)
    for seed in range(30):
        hidden = POSITION[draw_mask(POSITION, few, keyed_rng("y", seed))]
        assert (np.ptp(hidden, axis=0) <= 50).all()


def test_shares_of_crops_and_patches_follow_their_ranges() -> None:
    config = MasksConfig(crop_share=0.5, share_min=0.1, share_max=0.5)
    shares = np.array([draw_mask(POSITION, config, keyed_rng("z", seed)).mean() for seed in range(300)])
    masked = shares[shares > 0]
    assert 0.4 < len(masked) / 300 < 0.6
    assert masked.min() > 0.095 and masked.max() < 0.505 and abs(masked.mean() - 0.3) < 0.03


def test_a_patch_stays_visible_whatever_the_crop() -> None:
    config = HiddenPatchesConfig(share_min=0.99, share_max=0.99)
    for patches in (0, 1, 2, 3):
        mask = draw_mask(POSITION[:patches], config, keyed_rng(patches))
        assert mask.sum() == max(patches - 1, 0)


def test_masks_follow_the_study_not_its_place_in_the_batch(make_batch: Callable[..., StudyBatch]) -> None:
    config = MasksConfig(crop_share=1.0, share_min=0.3, share_max=0.7)
    batch = make_batch(3, [0, 0, 1, 2], [True] * 3)
    found = draw_masks(batch, ["global_a", "global_b"], config)
    again = draw_masks(batch, ["global_a"], config)
    assert torch.equal(found["global_a"], again["global_a"])
    alone = make_batch(1, [0, 0], [True])
    alone.views["global_a"].position_T3 = batch.views["global_a"].position_T3[:10]
    assert torch.equal(draw_masks(alone, ["global_a"], config)["global_a"], found["global_a"][:10])
    later = draw_masks(make_batch(40, range(40), [True] * 40), ["global_a"], config)["global_a"].reshape(40, -1)
    assert len({tuple(row) for row in later.tolist()}) > 10, "each crop has its own"


def test_visible_patches_keep_their_order_and_their_crop(make_batch: Callable[..., StudyBatch]) -> None:
    view = make_batch(2, [0, 1], [True] * 2).views["global_a"]
    mask = torch.tensor([1, 0, 0, 1, 0, 0, 1, 0, 0, 0]).bool()
    shown = visible(view, mask)
    assert masked_counts(mask, view).tolist() == [2, 1] and shown.lengths == [3, 4]
    assert torch.equal(shown.patches_TP, view.patches_TP[[1, 2, 4, 5, 7, 8, 9]])
    assert torch.equal(shown.study_S, view.study_S)


@pytest.mark.parametrize(
    "wrong", [{"crop_share": 0.0}, {"share_min": 0.6}, {"share_max": 1.0}, {"block_mm_min": 0.0}, {"block_mm_max": 1.0}]
)
def test_masks_outside_their_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="objective masks"):
        MasksConfig(**wrong)
