from __future__ import annotations

import numpy as np
import pytest

from fm.grid import border_connected_air, robust_range


@pytest.fixture
def head() -> tuple[np.ndarray, np.ndarray]:
    """A noisy bright shell (scalp), dark bone, bright brain with a dark ventricle; and its true outline."""
    rng = np.random.default_rng(0)
    h, w = np.mgrid[-1:1:96j, -1:1:80j]
    radius = np.hypot(h, w)
    picture = np.zeros((96, 80))
    picture[radius < 0.85] = 900
    picture[radius < 0.78] = 5
    picture[radius < 0.70] = 600
    picture[radius < 0.20] = 3
    volume = np.repeat(picture[None], 8, axis=0)
    noisy = np.hypot(volume + rng.normal(0, 10, volume.shape), rng.normal(0, 10, volume.shape))
    return noisy, np.repeat((radius < 0.85)[None], 8, axis=0)


def test_air_is_outside_and_the_inside_stays(head: tuple[np.ndarray, np.ndarray]) -> None:
    values, body = head
    air = border_connected_air(values)
    assert (air & body).sum() <= 0.02 * body.sum()
    assert (air | body).mean() > 0.95  # a rim of one voxel stays


def test_dark_cavities_inside_are_no_air(head: tuple[np.ndarray, np.ndarray]) -> None:
    values, _ = head
    assert not border_connected_air(values)[:, 40:56, 34:46].any()


def test_weak_signal_above_the_noise_stays(head: tuple[np.ndarray, np.ndarray]) -> None:
    """Diffusion at high b: signal only six times the noise, which lies above a tenth of the range."""
    rng = np.random.default_rng(1)
    _, body = head
    values = np.hypot(np.where(body, 60.0, 0.0) + rng.normal(0, 10, body.shape), rng.normal(0, 10, body.shape))
    air = border_connected_air(values)
    assert (air & body).sum() <= 0.03 * body.sum()
    assert (air & ~body).sum() >= 0.9 * (~body).sum()


def test_missing_slices_are_air_and_do_not_change_the_others(head: tuple[np.ndarray, np.ndarray]) -> None:
    values, _ = head
    valid = np.ones(8, dtype=bool)
    valid[3] = False
    gap = values.copy()
    gap[3] = 0
    air = border_connected_air(gap, valid)
    assert air[3].all()
    assert (air[valid] == border_connected_air(values[valid])).all()


def test_a_picture_full_of_body_loses_nothing() -> None:
    values = np.random.default_rng(0).uniform(500, 600, (4, 64, 64))
    values[:, 10:20, 10:20] = 2000
    assert border_connected_air(values).mean() < 0.01 or (border_connected_air(values) & (values > 600)).sum() == 0


def test_robust_range_ignores_the_outside() -> None:
    values = np.arange(1000.0).reshape(10, 10, 10)
    mask = values >= 500
    assert robust_range(values, mask, 0, 100) == (500.0, 999.0)
    assert robust_range(values, np.zeros_like(mask)) == (0.0, 0.0)
