from __future__ import annotations

import numpy as np

from fm.grid import bounding_box, box_slices, clip_box, full_box


def test_bounding_box_holds_exactly_the_mask() -> None:
    mask = np.zeros((5, 6, 7), dtype=bool)
    mask[1, 2, 6] = mask[3, 4, 0] = True
    box = bounding_box(mask)
    assert box == ((1, 2, 0), (4, 5, 7))
    assert mask[box_slices(box)].sum() == mask.sum()


def test_an_empty_mask_has_no_box() -> None:
    assert bounding_box(np.zeros((2, 2, 2), dtype=bool)) is None


def test_clipping_keeps_the_part_inside() -> None:
    assert clip_box(((-2, 1, 0), (3, 9, 2)), (4, 5, 6)) == ((0, 1, 0), (3, 5, 2))
    assert clip_box(((4, 0, 0), (9, 1, 1)), (4, 5, 6)) is None
    assert clip_box(full_box((4, 5, 6)), (4, 5, 6)) == ((0, 0, 0), (4, 5, 6))
