from __future__ import annotations

import numpy as np
import torch

from fm.batch import concat
from fm.data.collate import pack
from fm.data.views import SeriesView


def _view(tokens: int, fill: float) -> SeriesView:
    return SeriesView(
        patches=np.full((tokens, 6), fill, np.float32),
        position_mm=np.full((tokens, 3), 10 * fill, np.float32),
        step_mm=np.diag([fill, 1.0, 2.0]).astype(np.float32),
        contrast=int(fill),
        plane=1,
        agent=2,
    )


def test_views_lie_end_to_end_with_their_study_rows() -> None:
    packed = pack([_view(2, 1.0), _view(1, 2.0), _view(3, 3.0)], [0, 0, 2], 6)
    assert packed.lengths == [2, 1, 3]
    assert packed.patches_TP[:, 0].tolist() == [1, 1, 2, 3, 3, 3]
    assert packed.position_T3[:, 2].tolist() == [10, 10, 20, 30, 30, 30]
    assert packed.study_S.tolist() == [0, 0, 2] and packed.contrast_S.tolist() == [1, 2, 3]
    assert packed.spacing_S3.tolist() == [[1, 1, 2], [2, 1, 2], [3, 1, 2]]
    assert (packed.plane_S.tolist(), packed.agent_S.tolist()) == ([1] * 3, [2] * 3)


def test_a_pack_of_nothing_keeps_its_width_and_types() -> None:
    empty = pack([], [], 6)
    assert empty.patches_TP.shape == (0, 6) and empty.spacing_S3.shape == (0, 3) and empty.lengths == []
    assert empty.study_S.dtype is torch.int64
    joined = concat([empty, pack([_view(2, 1.0)], [0], 6), empty, pack([_view(1, 2.0)], [1], 6)])
    assert joined.offsets_S1.tolist() == [0, 2, 3] and joined.study_S.tolist() == [0, 1]


def test_moving_changes_the_dtype_of_patches_only() -> None:
    moved = pack([_view(2, 1.0)], [0], 6).to("cpu", torch.bfloat16)
    assert moved.patches_TP.dtype is torch.bfloat16
    assert moved.position_T3.dtype is torch.float32 and moved.spacing_S3.dtype is torch.float32
