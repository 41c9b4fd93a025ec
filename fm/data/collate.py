"""Views of many series to one pack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from fm.batch import PackedTokens
from fm.data.views import SeriesView


def pack(views: Sequence[SeriesView], studies: Sequence[int], patch_size: int) -> PackedTokens:
    """Lay views end to end; no padding.

    Args:
        views: one per series, in the order of their studies.
        studies: row of each view's study in the batch, ascending.
        patch_size: P, voxels per patch; says the width of a pack without any view.
    """
    lengths = [len(view.patches) for view in views]
    offsets = torch.zeros(len(views) + 1, dtype=torch.int64)
    offsets[1:] = torch.tensor(lengths, dtype=torch.int64).cumsum(0)
    return PackedTokens(
        patches_TP=_joined([view.patches for view in views], patch_size),
        position_T3=_joined([view.position_mm for view in views], 3),
        offsets_S1=offsets,
        contrast_S=torch.tensor([view.contrast for view in views], dtype=torch.int64),
        plane_S=torch.tensor([view.plane for view in views], dtype=torch.int64),
        agent_S=torch.tensor([view.agent for view in views], dtype=torch.int64),
        step_S33=torch.tensor(np.array([view.step_mm for view in views]), dtype=torch.float32).reshape(-1, 3, 3),
        study_S=torch.tensor(list(studies), dtype=torch.int64),
    )


def _joined(parts: Sequence[NDArray[np.float32]], width: int) -> Tensor:
    """(rows, width) float32; in a loader process in memory that is shared with training, as torch's own collation."""
    shape = (sum(len(part) for part in parts), width)
    joined = torch.empty(shape)
    if shape[0] and get_worker_info() is not None:
        joined = torch.empty(0).set_(torch.UntypedStorage._new_shared(4 * shape[0] * width), 0, shape)
    if parts:
        np.concatenate(parts, out=joined.numpy())
    return joined
