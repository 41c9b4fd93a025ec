"""Which patches are hidden: contiguous boxes in millimetres, equal for equal studies, steps and views."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fm.batch import PackedTokens, StudyBatch
from fm.config.masking import MasksConfig
from fm.data.plan import keyed_rng


def draw_masks(batch: StudyBatch, names: Sequence[str], config: MasksConfig) -> dict[str, Tensor]:
    """(T,) bool per view, True where a patch is hidden; on the views' device.

    The random numbers of a crop are keyed by step, study, view and the crop's place among the study's: ranks,
    micro-batches and restarts change no mask.
    """
    return {name: _draw_view(batch, name, config) for name in names}


def _draw_view(batch: StudyBatch, name: str, config: MasksConfig) -> Tensor:
    view = batch.views[name]
    position_T3 = view.position_T3.cpu().numpy()
    seen: Counter[int] = Counter()
    masks, first = [], 0
    for study, length in zip(view.study_S.tolist(), view.lengths, strict=True):
        rng = keyed_rng("mask", batch.step, batch.keys[study], name, seen[study])
        seen[study] += 1
        masks.append(draw_mask(position_T3[first : first + length], config, rng))
        first += length
    joined = np.concatenate(masks) if masks else np.zeros(0, dtype=bool)
    return torch.from_numpy(joined).to(view.position_T3.device)


def draw_mask(position_N3: NDArray[np.float32], config: MasksConfig, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(N,) bool: the hidden patches of one crop, or none where the crop is left whole.

    A share is drawn, then boxes: each round a patch that is still visible, with edges in mm drawn apart for the three
    axes on a logarithmic scale. The last box keeps the patches nearest to its centre, so that the number is the drawn
    share, rounded; at least one patch stays visible.

    Args:
        position_N3: patch centres in mm.
        config: shares and edges.
        rng: what to draw with.
    """
    mask_N = np.zeros(len(position_N3), dtype=bool)
    if rng.random() >= config.crop_share:
        return mask_N
    left = min(round(len(mask_N) * rng.uniform(config.share_min, config.share_max)), len(mask_N) - 1)
    if config.block_mm_max == 0:
        mask_N[rng.permutation(len(mask_N))[: max(left, 0)]] = True
        return mask_N
    low, high = np.log(config.block_mm_min), np.log(config.block_mm_max)
    while left > 0:
        centre_3 = position_N3[rng.choice(np.flatnonzero(~mask_N))]
        half_3 = np.exp(rng.uniform(low, high, 3)) / 2
        away_N = np.abs((position_N3 - centre_3) / half_3).max(1)
        inside = np.flatnonzero((away_N <= 1) & ~mask_N)
        inside = inside[np.argsort(away_N[inside], kind="stable")[:left]]
        mask_N[inside] = True
        left -= len(inside)
    return mask_N


def masked_counts(mask_T: Tensor, view: PackedTokens) -> Tensor:
    """(S,) int64: hidden patches of each crop."""
    total_T1 = torch.nn.functional.pad(mask_T.long().cumsum(0), (1, 0))
    counts: Tensor = total_T1.index_select(0, view.offsets_S1).diff()
    return counts


def visible(view: PackedTokens, mask_T: Tensor) -> PackedTokens:
    """The pack without its hidden patches."""
    offsets = torch.zeros_like(view.offsets_S1)
    offsets[1:] = (view.offsets_S1.diff() - masked_counts(mask_T, view)).cumsum(0)
    return replace(view, patches_TP=view.patches_TP[~mask_T], position_T3=view.position_T3[~mask_T], offsets_S1=offsets)
