"""Views against a phantom whose intensity is a known function of the place in millimetres."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from fm.config.data import DataConfig
from fm.data.plan import keyed_rng
from fm.data.sample import Agent, Contrast, Plane, Role, SeriesMeta
from fm.data.views import Draw, Lattice, SeriesView, draw_view, draw_views, lattice_of, view, whole_view
from fm.data.volume import SeriesImage
from fm.grid import apply_affine

LATTICE = Lattice(patch_voxels=(2, 8, 8), spacing_mm=2.0, slice_spacing_mm=4.0, min_tissue=0.05)
SLOPE = np.array([1.1, -0.7, 1.9])


def _affine(angle: float, spacing: tuple[float, float, float]) -> NDArray[np.float64]:
    """Axial slices turned by `angle` about R and then about S; (D, H, W) columns."""
    c, s = math.cos(angle), math.sin(angle)
    about_r = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    about_s = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    columns = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]]).T * np.array(spacing)
    affine = np.eye(4)
    affine[:3, :3] = about_s @ about_r @ columns
    affine[:3, 3] = (-31.0, 12.0, 55.0)
    return affine


def _ramp(
    shape: tuple[int, int, int] = (18, 60, 52),
    spacing: tuple[float, float, float] = (4.0, 1.3, 1.3),
    angle: float = 0.3,
) -> SeriesImage:
    """Intensity 2000 + SLOPE · mm (from the array's centre): the body fills all but a rim of air."""
    affine = _affine(angle, spacing)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    centre = apply_affine(affine, (np.array(shape) - 1) / 2)
    values = 2000 + (apply_affine(affine, grid) - centre) @ SLOPE
    stored = np.rint(10 * values).astype(np.uint16)
    stored[:, :3] = stored[:, -3:] = stored[:, :, :3] = stored[:, :, -3:] = 0
    return SeriesImage(
        stored=stored,
        scale=0.1,
        offset=0.0,
        affine=affine,
        spacing_mm=spacing,
        foreground=((0, 3, 3), (shape[0], shape[1] - 3, shape[2] - 3)),
        centre_mm=centre,
        low=1500.0,
        high=2500.0,
        contrast=Contrast.FLAIR,
        plane=Plane.AXIAL,
        agent=Agent.YES,
    )


def _scanner_units(patches: NDArray[np.float32]) -> NDArray[np.float32]:
    """The inverse of the normalisation: −1 is air, −0.8 the low end, 1.2 the high end."""
    return 1500 + 1000 * ((patches + 1) / 2 - 0.1)


def _inner(found: SeriesView, image: SeriesImage) -> NDArray[np.bool_]:
    """Patches that lie inside the body with two samples to spare in-plane."""
    sampled = np.linalg.norm(found.step_mm, axis=1) / image.spacing_mm
    half = sampled * (np.array(LATTICE.patch_voxels) / 2 + (0, 2, 2))
    centre = apply_affine(np.linalg.inv(image.affine), found.position_mm + image.centre_mm)
    start, stop = (np.array(edge) for edge in image.foreground)
    return np.asarray(((centre - half >= start - 0.51) & (centre + half <= stop - 0.49)).all(axis=1))


@pytest.mark.parametrize("angle", [0.0, 0.3, -0.8])
@pytest.mark.parametrize("spacing", [(4.0, 1.3, 1.3), (5.0, 3.1, 2.6), (1.0, 1.0, 1.0)])
def test_each_patch_shows_what_lies_at_its_position(angle: float, spacing: tuple[float, float, float]) -> None:
    """A linear ramp stays itself under averaging and interpolation, so a patch's mean is the ramp at its centre."""
    shape = (18, 60, 52) if spacing[0] > 1 else (40, 70, 64)
    image = _ramp(shape, spacing, angle)
    found = whole_view(image, LATTICE)
    inner = _inner(found, image)
    assert inner.sum() >= 8
    want = 2000 + found.position_mm[inner] @ SLOPE
    got = _scanner_units(found.patches[inner]).mean(axis=1)
    np.testing.assert_allclose(got, want, atol=0.5)  # 0.5 of about 200 across the volume
    assert np.ptp(want) > 50


def test_the_same_holds_under_every_random_draw() -> None:
    image, data = _ramp(), DataConfig(gain=0.0, gamma=0.0, noise=0.0, position_jitter_mm=0.0, local_extent=0.6)
    rng = np.random.default_rng(0)
    checked = 0
    for i in range(40):
        found = view(image, LATTICE, draw_view(data, rng, local=i % 2 == 0), rng)
        inner = _inner(found, image)
        want = 2000 + found.position_mm[inner] @ SLOPE
        np.testing.assert_allclose(_scanner_units(found.patches[inner]).mean(axis=1), want, atol=0.6)
        checked += int(inner.sum())
    assert checked > 200


def test_voxel_order_within_a_patch_is_d_h_w() -> None:
    image = _ramp(angle=0.0)
    found = whole_view(image, LATTICE)
    patch = _scanner_units(found.patches[_inner(found, image)][0]).reshape(2, 8, 8)
    steps = [np.diff(patch, axis=axis).mean() for axis in range(3)]
    # D runs along S, H along A, W along R.
    np.testing.assert_allclose(steps, [SLOPE[2] * 4.0, SLOPE[1] * 2.0, SLOPE[0] * 2.0], atol=0.05)
    np.testing.assert_allclose(np.linalg.norm(found.step_mm, axis=1), (4.0, 2.0, 2.0))
    assert (found.contrast, found.plane, found.agent) == (3, 0, 2)


def test_air_and_padding_become_no_tokens() -> None:
    image = _ramp()
    everything = whole_view(image, LATTICE)
    image.stored[:, :, 26:] = 0
    half = whole_view(image, LATTICE)
    assert 0.4 < len(half.patches) / len(everything.patches) < 0.8
    share = (half.patches > -0.9).mean(axis=1)
    assert share.min() >= LATTICE.min_tissue


def test_a_missing_slice_changes_only_the_patches_that_hold_it() -> None:
    image = _ramp()
    before = whole_view(image, LATTICE)
    stored = image.stored.copy()
    stored[6:8] = 0
    after = whole_view(replace(image, stored=stored), LATTICE)
    gone = {tuple(p) for p in before.position_mm.tolist()} - {tuple(p) for p in after.position_mm.tolist()}
    assert 0 < len(gone) == len(before.patches) - len(after.patches)
    at = {tuple(p): i for i, p in enumerate(before.position_mm.tolist())}
    rows = [at[tuple(p)] for p in after.position_mm.tolist()]
    assert np.array_equal(after.patches, before.patches[rows])


def test_thin_slices_are_averaged_and_a_missing_one_darkens_nothing() -> None:
    image = _ramp((40, 70, 64), (1.0, 1.0, 1.0), 0.0)
    found = whole_view(image, LATTICE)
    np.testing.assert_allclose(np.linalg.norm(found.step_mm, axis=1), (4.0, 2.0, 2.0))
    image.stored[21] = 0
    holed = whole_view(image, LATTICE)
    assert len(holed.patches) == len(found.patches)
    assert np.abs(_scanner_units(holed.patches) - _scanner_units(found.patches)).max() < 3.0


def test_dark_tissue_is_not_air() -> None:
    image = _ramp()
    image.stored[image.stored > 0] = 100  # 10 scanner units: far below the low end of the range
    found = whole_view(image, LATTICE)
    inner = _inner(whole_view(_ramp(), LATTICE), _ramp())
    np.testing.assert_allclose(found.patches[inner], -0.8, atol=1e-5)


def test_a_view_never_has_no_token() -> None:
    image = _ramp()
    image.stored[:] = 0
    assert whole_view(image, LATTICE).patches.shape == (1, 128)


def test_crops_and_kept_shares_are_as_drawn() -> None:
    image = _ramp()
    whole = whole_view(image, LATTICE)
    crop = view(image, LATTICE, Draw(start=(0, 0, 0), stop=(1, 0.5, 0.5)), np.random.default_rng(0))
    extent = np.ptp(whole.position_mm @ image.affine[:3, 1]) / np.ptp(crop.position_mm @ image.affine[:3, 1])
    assert extent > 1.5
    rng = np.random.default_rng(0)
    kept = view(image, LATTICE, Draw(keep=0.25), rng)
    assert len(kept.patches) == round(0.25 * len(whole.patches))
    at = {tuple(p): i for i, p in enumerate(whole.position_mm.tolist())}
    rows = [at[tuple(p)] for p in kept.position_mm.tolist()]
    assert np.array_equal(kept.patches, whole.patches[rows]) and rows == sorted(rows)


def test_augmentation_acts_on_tissue_as_drawn() -> None:
    image, rng = _ramp(), np.random.default_rng(0)
    plain = whole_view(image, LATTICE)
    inner = _inner(plain, image)
    share = (plain.patches[inner] + 1) / 2 - 0.1
    drawn = view(image, LATTICE, Draw(gain=1.2, gamma=1.3), rng)
    want = 2 * 1.2 * (0.1 + share**1.3) - 1
    np.testing.assert_allclose(drawn.patches[inner], want, atol=2e-3)
    noisy = view(image, LATTICE, Draw(noise=0.05), rng)
    assert 2 * 0.05 * 0.9 < (noisy.patches - plain.patches).std() < 2 * 0.05 * 1.1
    moved = view(image, LATTICE, Draw(offset_mm=(3.0, -2.0, 1.0)), rng)
    np.testing.assert_allclose(moved.position_mm - plain.position_mm, [[3.0, -2.0, 1.0]] * len(inner), atol=1e-4)


def test_draws_stay_within_the_configuration() -> None:
    data, rng = DataConfig(), np.random.default_rng(1)
    for i in range(300):
        local = i % 2 == 0
        draw = draw_view(data, rng, local=local)
        extent = np.array(draw.stop) - np.array(draw.start)
        assert min(draw.start) >= 0 and max(draw.stop) <= 1 + 1e-9
        assert np.allclose(extent, data.local_extent) if local else extent.min() >= data.global_extent
        assert abs(draw.spacing_factor - 1) <= data.spacing_jitter and abs(draw.gain - 1) <= data.gain
        assert abs(math.log(draw.gamma)) <= data.gamma and 0 <= draw.noise <= data.noise
        assert np.abs(draw.offset_mm).max() <= data.position_jitter_mm
        assert draw.keep == (data.local_keep if local else data.global_keep)


def test_the_lattice_is_that_of_the_configuration() -> None:
    data = DataConfig(spacing_mm=2.0, slice_spacing_mm=4.0, min_tissue=0.05)
    assert lattice_of(data, (2, 8, 8)) == LATTICE


NAMES = ["global_a", "global_b", "global_c", "local_a", "local_b"]


def _series(size: tuple[int, int, int] = (40, 200, 160)) -> SeriesMeta:
    return SeriesMeta(
        name="flair",
        contrast=Contrast.FLAIR,
        role=Role.ORIGINAL,
        plane=Plane.AXIAL,
        shape=size,
        spacing_mm=(4.0, 0.9, 1.2),
        affine=np.eye(4).tolist(),
        slice_position_mm=[4.0 * i for i in range(size[0])],
        slice_valid=[True] * size[0],
        frame_of_reference=0,
        foreground=((0, 0, 0), size),
        intensity_scale=1.0,
        intensity_offset=0.0,
        intensity_low=0.0,
        intensity_high=1.0,
    )


def test_views_are_placed_at_random_unless_told_otherwise() -> None:
    data, key = DataConfig(), (1, "crop", 0, "k", "flair")
    draws = draw_views(data, _series(), NAMES, key)
    assert draws == {n: draw_view(data, keyed_rng(*key, n), local=n.startswith("local")) for n in NAMES}


def test_globals_overlap_and_locals_lie_inside_where_asked() -> None:
    data = DataConfig(global_extent=0.3, global_overlap=0.25, local_extent=0.35, local_inside=True)
    least, shares, homes = 1.0, [], set()
    for epoch in range(300):
        draws = draw_views(data, _series(), NAMES, (1, "crop", epoch, "k", "flair"))
        span = {name: (np.array(draw.start), np.array(draw.stop)) for name, draw in draws.items()}
        assert all(low.min() >= 0 and high.max() <= 1 + 1e-9 for low, high in span.values())
        (low, high), inside = span["global_a"], []
        for name in ("global_b", "global_c"):
            a, b = span[name]
            assert np.allclose(b - a, np.subtract(*_extent(data, name, epoch)), atol=1e-9), "the size is as drawn"
            common = (np.minimum(b, high) - np.maximum(a, low)) / np.minimum(b - a, high - low)
            least = min(least, common.min())
            shares += common.tolist()
        for name in ("local_a", "local_b"):
            a, b = span[name]
            inside = [g for g in NAMES[:3] if (a >= span[g][0] - 1e-9).all() and (b <= span[g][1] + 1e-9).all()]
            assert inside
            homes.update(inside)
    assert least >= 0.25 - 1e-9 and min(shares) < 0.35 and max(shares) > 0.9, "the whole allowed range is used"
    assert homes == set(NAMES[:3])


def _extent(data: DataConfig, name: str, epoch: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    draw = draw_view(data, keyed_rng(1, "crop", epoch, "k", "flair", name), local=False)
    return draw.stop, draw.start


def test_crops_have_the_size_in_mm_that_was_asked_for() -> None:
    data = DataConfig(global_mm=120.0, local_mm=48.0)
    for epoch in range(50):
        draws = draw_views(data, _series(), NAMES, (epoch, "crop"))
        for name, draw in draws.items():
            size_mm = (np.array(draw.stop) - draw.start) * (160.0, 180.0, 192.0)
            np.testing.assert_allclose(size_mm, 48.0 if name.startswith("local") else 120.0)
            assert min(draw.start) >= 0 and max(draw.stop) <= 1 + 1e-9
    small = draw_views(data, _series((10, 60, 50)), ["global_a"], (0, "crop"))["global_a"]
    np.testing.assert_allclose(np.array(small.stop) - small.start, 1.0)
