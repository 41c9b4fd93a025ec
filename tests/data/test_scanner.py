from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from fm.config.data import DataConfig
from fm.config.errors import ConfigError
from fm.data.scanner import Effects, apply_effects, draw_effects
from fm.data.views import Draw, Lattice, crop
from fm.data.volume import SeriesImage

Float = NDArray[np.float32]
SHAPE, BODY = (6, 64, 48), np.s_[:, 8:56, 6:42]
ALL = DataConfig(
    effect_share=1.0,
    bias_field=0.5,
    blur_mm=2.0,
    ghosting=0.5,
    low_resolution=2.0,
    low_field_t=0.064,
    acceleration=2.0,
)


def _grid(seed: int = 0) -> Float:
    """A body with a bright quarter on one side, in a rim of air."""
    grid = np.zeros(SHAPE, np.float32)
    grid[BODY] = 1 + 0.2 * np.random.default_rng(seed).standard_normal((6, 48, 36))
    grid[:, 8:32, 6:24] += 1
    return grid


def _after(effects: Effects, grid: Float | None = None) -> Float:
    found = _grid() if grid is None else grid.copy()
    apply_effects(found, effects, (1.0, 2.0))
    return found


def test_every_effect_is_off_by_default_and_draws_no_numbers() -> None:
    assert draw_effects(DataConfig(), ("k",)) is None
    assert np.array_equal(_after(Effects(key=("k",))), _grid())


@pytest.mark.parametrize("axis", [1, 2])
def test_the_air_stays_air_and_equal_keys_give_equal_images(axis: int) -> None:
    for number in range(20):
        effects = draw_effects(ALL, ("seed", number))
        assert effects is not None
        effects.phase_axis = axis
        found = _after(effects)
        assert np.isfinite(found).all() and found.min() >= 0 and not found[_grid() == 0].any()
        assert np.array_equal(found, _after(effects)) and not np.array_equal(found, _grid())
    again = draw_effects(ALL, ("seed", 19))
    assert again is not None and np.array_equal(_after(replace(again, phase_axis=axis)), found)


def test_nothing_is_mirrored_or_moved() -> None:
    plain = _grid()
    for number in range(30):
        # A field of 0.5 can outshine the bright side.
        effects = draw_effects(replace(ALL, bias_field=0.1), ("side", number))
        assert effects is not None
        found = _after(effects)
        upright = np.corrcoef(found[BODY].ravel(), plain[BODY].ravel())[0, 1]
        for mirrored in (plain[:, ::-1], plain[:, :, ::-1], plain[::-1, ::-1, ::-1]):
            assert upright > np.corrcoef(found[BODY].ravel(), mirrored[BODY].ravel())[0, 1] + 0.1


def test_each_effect_is_put_on_its_share_of_the_views() -> None:
    drawn = [draw_effects(replace(ALL, effect_share=0.25), ("share", i)) for i in range(1000)]
    hits = np.array(
        [
            (e.bias is not None, e.blur_mm > 0, e.ghosts > 0, e.acceleration > 1, e.noise > 0)
            for e in drawn
            if e is not None
        ]
    )
    np.testing.assert_allclose(hits.mean(axis=0), 0.25, atol=0.05)
    assert {e.phase_axis for e in drawn if e is not None} == {1, 2}
    only = draw_effects(DataConfig(blur_mm=2.0, effect_share=1.0), ("one",))
    assert only == Effects(key=("one",), phase_axis=only.phase_axis, blur_mm=only.blur_mm) and 0 < only.blur_mm <= 2


def test_a_bias_field_is_smooth_and_multiplies() -> None:
    effects = draw_effects(DataConfig(bias_field=0.5, effect_share=1.0), ("bias", 1))
    assert effects is not None
    field = _after(effects)[BODY] / _grid()[BODY]
    assert np.ptp(field) > 0.2 and np.abs(np.diff(np.log(field), axis=1)).max() < 0.2
    assert np.array_equal(field, _after(effects, 2 * _grid())[BODY] / (2 * _grid()[BODY]))


def test_blur_is_a_gaussian_of_that_many_mm() -> None:
    point = np.zeros((1, 65, 49), np.float32) + 1e-3  # the rim of the body would be set to air again
    point[0, 32, 24] = 100
    found = _after(Effects(key=("k",), blur_mm=3.0), point)[0] - 1e-3
    rows, columns = found.sum(axis=1), found.sum(axis=0)
    np.testing.assert_allclose(found.sum(), 100, rtol=2e-3)
    for profile, mm in ((rows, 1.0), (columns, 2.0)):
        place = (np.arange(len(profile)) - len(profile) // 2) * mm
        np.testing.assert_allclose(np.sqrt((profile * place**2).sum() / profile.sum()), 3.0, rtol=0.01)


def test_coarse_voxels_keep_the_mean_and_lose_detail() -> None:
    noise = 5 + np.random.default_rng(0).standard_normal((2, 64, 64)).astype(np.float32)
    found = _after(Effects(key=("k",), coarse=4.0), noise)
    np.testing.assert_allclose(found.mean(), noise.mean(), rtol=2e-3)
    assert found.std() < 0.3 * noise.std()
    ramp = np.broadcast_to(np.arange(1, 65, dtype=np.float32)[:, None], (2, 64, 64)).copy()
    np.testing.assert_allclose(_after(Effects(key=("k",), coarse=4.0), ramp)[:, 4:-4], ramp[:, 4:-4], rtol=1e-4)


def test_ghosts_lie_at_equal_distances_along_the_phase_encoding_axis() -> None:
    bright = np.full((1, 64, 64), 1e-3, np.float32)
    bright[0, 30:34, 30:34] = 1
    found = _after(Effects(key=("k",), phase_axis=1, ghosts=4, ghost_strength=0.5), bright)[0]
    # Every fourth line weakened: copies a quarter of the field of view apart, an eighth as strong.
    column = found[:, 31]
    assert column[[47, 15]].min() > 0.09 and column[[39, 23]].max() < 0.05
    np.testing.assert_allclose(found[31, [5, 15, 47]], 1e-3, atol=1e-3)


def test_lines_are_left_out_but_for_the_middle_of_k_space() -> None:
    grid = np.abs(np.random.default_rng(0).standard_normal((4, 200, 8))).astype(np.float32) + 1
    effects = Effects(key=("lines",), phase_axis=1, acceleration=4.0)
    spectrum = np.fft.fft(grid, axis=1)
    kept = np.fft.fft(_complex_after(effects, grid), axis=1)
    acquired = np.abs(kept).sum(axis=(0, 2)) > 1e-2 * np.abs(spectrum).sum(axis=(0, 2))
    assert 30 < acquired.sum() < 70 and acquired[np.abs(np.fft.fftfreq(200)) <= 0.04].all()
    np.testing.assert_allclose(_after(effects, grid).mean(), grid.mean(), rtol=0.1)


def _complex_after(effects: Effects, grid: Float) -> NDArray[np.complex128]:
    """The image before its magnitude is taken, from the lines that the module chose."""
    from fm.data.scanner import _lines

    return np.asarray(np.fft.ifft(np.fft.fft(grid, axis=1) * _lines(effects, grid.shape[1])[:, None], axis=1))


def test_noise_is_rician_of_the_stated_deviation() -> None:
    grid = np.full((10, 64, 64), 3.0, np.float32)
    grid[:5] = 1e-6
    found = _after(Effects(key=("noise",), noise=0.05), grid)
    np.testing.assert_allclose(found[5:].std(), 2 * 0.05, rtol=0.05)  # grids hold twice the normalised value
    np.testing.assert_allclose(found[:5].mean(), 2 * 0.05 * np.sqrt(np.pi / 2), rtol=0.05)
    np.testing.assert_allclose(np.sqrt((found[5:] ** 2).mean()), np.sqrt(9 + 2 * 0.1**2), rtol=1e-3)


def test_low_field_is_coarse_and_noisy() -> None:
    drawn = [draw_effects(DataConfig(low_field_t=0.064, effect_share=1.0), ("t", i)) for i in range(400)]
    coarse, noise = (np.array([getattr(e, name) for e in drawn]) for name in ("coarse", "noise"))
    # Both together make up for the loss of signal, which is the ratio of the fields.
    np.testing.assert_allclose(coarse**2 * noise / 0.02, (coarse**4) ** 1.0, rtol=1e-9)
    assert 1 <= coarse.min() < 1.05 and 2.1 < coarse.max() <= (1.5 / 0.064) ** 0.25


def test_effects_change_voxels_and_never_which_patches_there_are() -> None:
    stored = np.rint(1000 * _grid()).astype(np.uint16)
    image = SeriesImage(
        stored=stored,
        scale=1.0,
        offset=0.0,
        affine=np.diag([1.0, 1.0, 1.0, 1.0]),
        spacing_mm=(4.0, 1.0, 2.0),
        foreground=((0, 8, 6), (6, 56, 42)),
        centre_mm=np.zeros(3),
        low=0.0,
        high=2000.0,
    )
    lattice = Lattice(patch_voxels=(2, 8, 8), spacing_mm=1.0, slice_spacing_mm=4.0, min_tissue=0.05)
    plain = crop(image, lattice, Draw())
    changed = crop(image, lattice, Draw(effects=draw_effects(ALL, ("crop",))))
    assert np.array_equal(plain.position_mm, changed.position_mm) and not np.array_equal(plain.patches, changed.patches)


def test_values_outside_their_range_are_refused() -> None:
    for wrong in ({"blur_mm": -1.0}, {"acceleration": 0.5}, {"low_field_t": 3.0}, {"ghosting": 1.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            DataConfig(**wrong)  # type: ignore[arg-type]
