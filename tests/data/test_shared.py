"""Cross-sequence views of a drawn phantom: two grids at an angle, one landmark in the patient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fm.config.data import DataConfig
from fm.data.codec import encode_volume
from fm.data.index import Manifest
from fm.data.plan import keyed_rng
from fm.data.reader import SeriesSeen, StudyReader
from fm.data.sample import Contrast, Plane, Role, SeriesMeta, StudyMeta
from fm.data.shared import anchor_of, follow
from fm.data.views import Draw, SeriesView, lattice_of
from fm.grid import apply_affine, plane_of, spacing_of

LANDMARK_MM = np.array([14.0, -9.0, 6.0])
PATCH = (1, 8, 8)


def _affine(columns: list[list[float]], shape: tuple[int, int, int], tilt_degrees: float) -> np.ndarray:
    """A grid centred on the patient's origin, turned about the right–left axis."""
    angle = np.radians(tilt_degrees)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array(columns).T
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine


def _series(
    name: str, columns: list[list[float]], shape: tuple[int, int, int], tilt: float, frame: int
) -> tuple[SeriesMeta, bytes]:
    affine = _affine(columns, shape, tilt)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    distance = np.linalg.norm(apply_affine(affine, index) - LANDMARK_MM, axis=-1)
    values = np.rint(300 + 2000 * np.exp(-((distance / 5) ** 2))).astype(np.float32)
    encoded = encode_volume(values)
    meta = SeriesMeta(
        name=name,
        contrast=Contrast.T1W,
        role=Role.ORIGINAL,
        plane=Plane(plane_of(affine, 0)),
        shape=shape,
        spacing_mm=spacing_of(affine),
        affine=affine.tolist(),
        slice_position_mm=[spacing_of(affine)[0] * i for i in range(shape[0])],
        slice_valid=[True] * shape[0],
        frame_of_reference=frame,
        foreground=((0, 0, 0), shape),
        intensity_scale=encoded.scale,
        intensity_offset=encoded.offset,
        intensity_low=0.0,
        intensity_high=2400.0,
    )
    return meta, encoded.payload


AXIAL = [[0.0, 0.0, 3.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
SAGITTAL = [[4.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]


@pytest.fixture(scope="module")
def study() -> tuple[StudyMeta, dict[str, bytes]]:
    """An axial series, an oblique sagittal one with a smaller field of view, and the axial one in another frame."""
    made = [
        _series("ax", AXIAL, (40, 120, 110), 0.0, 0),
        _series("sag", SAGITTAL, (24, 100, 100), 15.0, 0),
        _series("else", AXIAL, (40, 120, 110), 0.0, 1),
    ]
    meta = StudyMeta(key="s", patient="p", region="head", series=[series for series, _ in made])
    return meta, {f"{series.name}.b2": payload for series, payload in made}


def _see(study: tuple[StudyMeta, dict[str, bytes]], visit: int, **changes: Any) -> Iterator[SeriesSeen]:
    data = DataConfig(
        **{
            "spacing_mm": 1.0, "slice_spacing_mm": 3.0, "global_views": 1, "local_views": 2, "global_mm": 70.0,
            "local_mm": 36.0, "local_inside": True, "gain": 0.0, "gamma": 0.0, "noise": 0.0, **changes,
        }
    )  # fmt: skip
    reader = StudyReader(_NO_MANIFEST, data, lattice_of(data, PATCH), _NO_TOKENIZER, seed=3)
    meta, members = study
    return reader.see(meta, visit, lambda key, member: members[member], keyed_rng(3, visit, meta.key))


_NO_MANIFEST: Any = object.__new__(Manifest)
_NO_TOKENIZER: Any = None


def _landmark(view: SeriesView) -> np.ndarray | None:
    """Where the brightest voxel of a view lies, mm from the origin of positions; None where the blob is not in it."""
    patch, voxel = np.unravel_index(view.patches.argmax(), view.patches.shape)
    if view.patches[patch, voxel] < 0.6:
        return None
    within = np.array(np.unravel_index(voxel, PATCH)) - (np.array(PATCH) - 1) / 2
    return np.asarray(view.position_mm[patch] + within @ view.step_mm)


def test_a_landmark_lies_in_both_crops_at_the_same_mm(study: tuple[StudyMeta, dict[str, bytes]]) -> None:
    met, apart = 0, 0
    for visit in range(40):
        ax, sag, other = _see(study, visit, cross_sequence=True)
        for name in ax.views:
            one, two = _landmark(ax.views[name]), _landmark(sag.views[name])
            if one is not None and name == "global_a":
                assert two is not None, "what the anchor's crop holds lies in the other's"
            if one is not None and two is not None:
                met += 1
                assert np.linalg.norm(one - two) < 3.5, "half a voxel of each"
        apart += _landmark(other.views["local_a"]) is None and _landmark(ax.views["local_a"]) is not None
    assert met > 20 and apart > 0, "another frame of reference draws its own crops"


def test_off_by_default_and_the_anchor_is_drawn_as_ever(study: tuple[StudyMeta, dict[str, bytes]]) -> None:
    plain, off = list(_see(study, 5)), list(_see(study, 5, cross_sequence=False))
    on = list(_see(study, 5, cross_sequence=True))
    assert DataConfig().cross_sequence is False
    for a, b in zip(plain, off, strict=True):
        for name in a.views:
            assert np.array_equal(a.views[name].patches, b.views[name].patches)
            assert np.array_equal(a.views[name].position_mm, b.views[name].position_mm)
    assert on[0].series.name == anchor_of(on[1].series, study[0].series).name == "ax"
    for name in plain[0].views:
        assert np.array_equal(plain[0].views[name].patches, on[0].views[name].patches)
        assert not np.array_equal(plain[1].crops[name].position_mm, on[1].crops[name].position_mm)


def test_a_crop_that_a_series_does_not_reach_stays_its_own(study: tuple[StudyMeta, dict[str, bytes]]) -> None:
    ax, sag, _ = study[0].series
    moved = np.array(sag.affine)
    moved[:3, 3] += 500
    far = replace(sag, affine=moved.tolist())
    own = {"global_a": Draw(start=(0.1, 0.2, 0.3), stop=(0.4, 0.5, 0.6), gain=1.5)}
    wanted = {"global_a": Draw(start=(0.3, 0.3, 0.3), stop=(0.7, 0.7, 0.7), gain=0.5)}
    assert follow(own, wanted, ax, far) == own
    followed = follow(own, wanted, ax, sag)["global_a"]
    assert followed.gain == 1.5 and followed.start != own["global_a"].start


def test_a_whole_crop_of_an_equal_grid_is_the_same_box(study: tuple[StudyMeta, dict[str, bytes]]) -> None:
    ax = study[0].series[0]
    twin = replace(ax, name="twin")
    wanted = {"v": Draw(start=(0.1, 0.25, 0.0), stop=(0.6, 0.75, 1.0))}
    found = follow({"v": Draw()}, wanted, ax, twin)["v"]
    assert np.allclose([found.start, found.stop], [wanted["v"].start, wanted["v"].stop], atol=1e-9)
