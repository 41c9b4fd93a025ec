"""Views of many series to one pack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from fm.batch import PackedTokens
from fm.data.touch import complete
from fm.data.views import SeriesView


def pack(views: Sequence[SeriesView], studies: Sequence[int], patch_size: int, *, late: bool = False) -> PackedTokens:
    """Lay views end to end; no padding. What they still lack is done as they are laid.

    Args:
        views: one per series, in the order of their studies.
        studies: row of each view's study in the batch, ascending.
        patch_size: P, voxels per patch; says the width of a pack without any view.
        late: whether to leave them as they are, for :func:`fm.data.touch.finish`.
    """
    lengths = [len(view.patches) for view in views]
    offsets = torch.zeros(len(views) + 1, dtype=torch.int64)
    offsets[1:] = torch.tensor(lengths, dtype=torch.int64).cumsum(0)
    return PackedTokens(
        patches_TP=_patches(views, patch_size, late),
        position_T3=_positions(views),
        offsets_S1=offsets,
        contrast_S=torch.tensor([view.contrast for view in views], dtype=torch.int64),
        plane_S=torch.tensor([view.plane for view in views], dtype=torch.int64),
        agent_S=torch.tensor([view.agent for view in views], dtype=torch.int64),
        step_S33=torch.tensor(np.array([view.step_mm for view in views]), dtype=torch.float32).reshape(-1, 3, 3),
        study_S=torch.tensor(list(studies), dtype=torch.int64),
    )


def _patches(views: Sequence[SeriesView], width: int, late: bool) -> Tensor:
    lengths = [len(view.patches) for view in views]
    joined = _empty(sum(lengths), width)
    for view, out in zip(views, joined.split(lengths) if views else (), strict=True):
        patches = torch.from_numpy(view.patches)
        if late or view.late is None:
            out.copy_(patches)
        else:
            complete(patches.float(), view.late, out)
    return joined


def _positions(views: Sequence[SeriesView]) -> Tensor:
    joined = _empty(sum(len(view.position_mm) for view in views), 3)
    if views:
        np.concatenate([view.position_mm for view in views], out=joined.numpy())
    return joined


def _empty(rows: int, width: int) -> Tensor:
    """(rows, width) float32; in a loader process in memory that is shared with training, as torch's own collation."""
    if not rows or get_worker_info() is None:
        return torch.empty(rows, width)
    storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(4 * rows * width)
    return torch.empty(0).set_(storage, 0, (rows, width), (width, 1))
