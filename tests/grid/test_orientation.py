from __future__ import annotations

import itertools

import nibabel
import numpy as np
import pytest

from fm.grid import apply_affine, canonical_axes, plane_of


def scan(codes: str, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> np.ndarray:
    """Affine of a volume whose axes run toward the letters of `codes`."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, letter in enumerate(codes):
        world = next(i for i, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
        affine[world, axis] = spacing[axis] if letter in "RAS" else -spacing[axis]
    return affine


@pytest.mark.parametrize(
    ("codes", "plane", "axes"),
    [
        ("RAS", "axial", "SAR"),
        ("LPS", "axial", "SAR"),
        ("LPI", "axial", "SAR"),
        ("PSR", "sagittal", "RSA"),
        ("AIL", "sagittal", "RSA"),
        ("LSP", "coronal", "ASR"),
        ("RIA", "coronal", "ASR"),
    ],
)
def test_axes_follow_the_contract(codes: str, plane: str, axes: str) -> None:
    found = canonical_axes(scan(codes), (4, 5, 6), slice_axis=2)
    assert found.plane == plane == plane_of(scan(codes), 2)
    assert "".join(nibabel.aff2axcodes(found.affine)) == axes
    assert found.shape[0] == 6


@pytest.mark.parametrize("order", list(itertools.permutations("RAS")))
@pytest.mark.parametrize("opposite", list(itertools.product([False, True], repeat=3)))
def test_every_voxel_stays_where_it_was(order: tuple[str, ...], opposite: tuple[bool, ...]) -> None:
    codes = "".join(dict(R="L", A="P", S="I")[c] if flip else c for c, flip in zip(order, opposite, strict=True))
    tilt = np.eye(4)
    c, s = np.cos(0.17), np.sin(0.17)
    tilt[:3, :3] = [[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]
    affine = tilt @ scan(codes, (1.0, 2.0, 3.0))
    values = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    found = canonical_axes(affine, values.shape, slice_axis=2)
    moved = found.apply(values)
    assert moved.shape == found.shape
    places = {int(values[v]): apply_affine(affine, v) for v in np.ndindex(values.shape)}
    for voxel in np.ndindex(moved.shape):
        assert apply_affine(found.affine, voxel) == pytest.approx(places[int(moved[voxel])], abs=1e-9)
    assert found.spacing_mm[0] == pytest.approx(3.0)


def test_the_slice_axis_is_guessed_from_the_coarsest_spacing() -> None:
    assert canonical_axes(scan("RAS", (5.0, 1.0, 1.0)), (4, 5, 6)).order[0] == 0
    assert canonical_axes(scan("RAS", (1.0, 1.0, 1.0)), (4, 5, 6)).order[0] == 2
    assert canonical_axes(scan("RAS", (1.1, 1.0, 1.0)), (4, 5, 6)).order[0] == 2


@pytest.mark.parametrize("bad", [np.full((4, 4), np.inf), np.diag([1.0, 0.0, 1.0, 1.0])])
def test_an_impossible_affine_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="affine"):
        canonical_axes(bad, (4, 5, 6))
