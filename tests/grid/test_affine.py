from __future__ import annotations

import numpy as np
import pytest

from fm.grid import apply_affine, crop_affine, invert_affine, spacing_of

OBLIQUE = np.array([[0.8, 0.3, -1.0, 5.0], [-0.6, 0.4, 2.0, -7.0], [0.0, 0.5, 3.0, 11.0], [0.0, 0.0, 0.0, 1.0]])


def test_spacing_is_the_length_of_each_column() -> None:
    assert spacing_of(OBLIQUE) == pytest.approx((1.0, 0.5**0.5, 14**0.5))


def test_inverse_takes_millimetres_back_to_voxels() -> None:
    voxels = np.array([[0.0, 0.0, 0.0], [3.0, 5.0, 7.0]])
    assert apply_affine(invert_affine(OBLIQUE), apply_affine(OBLIQUE, voxels)) == pytest.approx(voxels)


def test_a_crop_keeps_every_voxel_in_its_place() -> None:
    start = (2, 5, 1)
    cropped = crop_affine(OBLIQUE, start)
    assert apply_affine(cropped, [1, 1, 1]) == pytest.approx(apply_affine(OBLIQUE, [3, 6, 2]))


@pytest.mark.parametrize("bad", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.eye(3)])
def test_an_impossible_affine_has_no_inverse(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="affine"):
        invert_affine(bad)
