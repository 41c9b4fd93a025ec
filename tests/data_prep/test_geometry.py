from __future__ import annotations

import numpy as np
import pytest

from data_prep.geometry import Frame, make_frame, make_grid
from data_prep.ledger import QuarantineError, Reason

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def frames(at: list[float]) -> list[Frame]:
    return [make_frame((0.0, 0.0, z), AXIAL, (1.0, 1.0)) for z in at]


@pytest.mark.parametrize(
    ("at", "slots"),
    [
        ([0, 5, 10, 15], [0, 1, 2, 3]),
        ([15, 0, 10, 5], [3, 0, 2, 1]),
        ([0, 5, 15, 20, 25], [0, 1, 3, 4, 5]),
        ([0, 5.2, 9.9, 15.1], [0, 1, 2, 3]),
        ([0, 5, 10, 30], [0, 1, 2, 6]),
        ([0, 5, 15], [0, 1, 3]),
        ([0, 10, 15, 25], [0, 2, 3, 5]),
        ([0, 0, 5, 5, 10, 10], [0, 0, 1, 1, 2, 2]),
        ([7], [0]),
    ],
)
def test_slices_find_their_place(at: list[float], slots: list[int]) -> None:
    grid = make_grid(frames(at), 4.0)
    assert grid.slot_of_frame.tolist() == slots
    assert grid.depth == max(slots) + 1
    assert grid.valid.sum() == len(set(slots))


@pytest.mark.parametrize("at", [[0, 5, 12.5, 17.5], [0, 5, 10, 11], [0, 1, 3, 6.5], [0, 5, 10, 40000]])
def test_places_on_no_grid_are_refused(at: list[float]) -> None:
    with pytest.raises(QuarantineError) as caught:
        make_grid(frames(at), None)
    assert caught.value.reason is Reason.IRREGULAR_SLICES


def test_a_stack_that_drifts_sideways_is_refused() -> None:
    drifting = [make_frame((0.0 if k != 2 else 3.0, 0.0, 5.0 * k), AXIAL, (1.0, 1.0)) for k in range(5)]
    with pytest.raises(QuarantineError):
        make_grid(drifting, None)


def test_a_sheared_stack_keeps_its_shear() -> None:
    grid = make_grid([make_frame((1.0 * k, 0.0, 5.0 * k), AXIAL, (1.0, 1.0)) for k in range(5)], None)
    assert grid.affine[:3, 2] == pytest.approx([-1.0, 0.0, 5.0])


@pytest.mark.parametrize(
    ("position", "orientation", "spacing"),
    [
        (None, AXIAL, (1.0, 1.0)),
        ((0.0, 0.0, 0.0), None, (1.0, 1.0)),
        ((0.0, 0.0, 0.0), AXIAL, None),
        ((0.0, 0.0, 0.0), AXIAL, (0.0, 1.0)),
        ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 1.0, 0.0, 0.0), (1.0, 1.0)),
        ((0.0, 0.0, 0.0), (0.0,) * 6, (1.0, 1.0)),
        ((1e9, 0.0, 0.0), AXIAL, (1.0, 1.0)),
    ],
)
def test_row_05_geometry_that_is_missing_or_impossible(
    position: tuple[float, ...] | None, orientation: tuple[float, ...] | None, spacing: tuple[float, ...] | None
) -> None:
    with pytest.raises(QuarantineError) as caught:
        make_frame(position, orientation, spacing)
    assert caught.value.reason is Reason.NO_GEOMETRY


def test_affine_is_ras_and_first_slice_first() -> None:
    grid = make_grid([make_frame((10.0, 20.0, 30.0 + 4 * k), AXIAL, (2.0, 3.0)) for k in (1, 0, 2)], None)
    expected = np.array([[-3.0, 0, 0, -10], [0, -2.0, 0, -20], [0, 0, 4.0, 30], [0, 0, 0, 1]])
    assert grid.affine == pytest.approx(expected)
