"""Views of many series to one pack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

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
    patches = np.concatenate([np.zeros((0, patch_size), np.float32), *(view.patches for view in views)])
    position = np.concatenate([np.zeros((0, 3), np.float32), *(view.position_mm for view in views)])
    return PackedTokens(
        patches_TP=torch.from_numpy(patches),
        position_T3=torch.from_numpy(position),
        offsets_S1=offsets,
        contrast_S=torch.tensor([view.contrast for view in views], dtype=torch.int64),
        plane_S=torch.tensor([view.plane for view in views], dtype=torch.int64),
        agent_S=torch.tensor([view.agent for view in views], dtype=torch.int64),
        step_S33=torch.tensor(np.array([view.step_mm for view in views]), dtype=torch.float32).reshape(-1, 3, 3),
        study_S=torch.tensor(list(studies), dtype=torch.int64),
    )
