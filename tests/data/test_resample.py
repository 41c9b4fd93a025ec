"""Resampling patch by patch against whole matrices in float64."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fm.data.resample import Span, filter_of, resample


def _dense(span: Span, *, box: bool, valid: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """(samples, hi − lo) weights, each from the definition: its distance to every voxel of an endless grid."""
    centre = span.origin + (np.arange(span.patches * span.size) + 0.5) * span.step - 0.5
    near = np.arange(-200, 400)
    distance = np.abs(centre[:, None] - near) / span.reach
    weights = (distance < 1).astype(np.float64) if box else np.maximum(0, 1 - distance)
    weights /= weights.sum(axis=1, keepdims=True)
    weights = weights[:, (near >= span.lo) & (near < span.hi)]
    if valid is not None:
        weights *= valid
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-6)
    return weights


def _span(patches: int, size: int, origin: float, step: float, voxels: int, *, box: bool = False) -> Span:
    reach = step / 2 if box else max(1.0, step)
    return Span(patches=patches, size=size, origin=origin, step=step, reach=reach, lo=0, hi=voxels)


@pytest.mark.parametrize(
    ("depth", "height", "width"),
    [
        ((3, 4, -1.0, 1.0, 10), (2, 16, 0.3, 1.0, 40), (3, 8, -4.6, 1.0, 25)),
        ((3, 4, 0.0, 1.0, 12), (2, 16, -1.0, 0.4, 11), (5, 8, 0.2, 2.7, 99)),
        ((2, 2, -3.0, 4.0, 12), (1, 4, 2.2, 1.3, 7), (2, 16, -40.0, 1.7, 3)),
        ((2, 3, -2.0, 3.0, 19), (3, 5, 0.0, 3.4, 60), (1, 1, 0.4, 1.0, 1)),
    ],
)
def test_patch_by_patch_is_the_whole_matrix(
    depth: tuple[int, int, float, float, int],
    height: tuple[int, int, float, float, int],
    width: tuple[int, int, float, float, int],
) -> None:
    """Cut at the rim, finer, coarser, and with fewer voxels than a patch has samples."""
    rng = np.random.default_rng(0)
    spans = (_span(*depth, box=True), _span(*height), _span(*width))
    valid = rng.random(depth[4]) < 0.7 if depth[3] > 1 else None
    values = rng.uniform(0, 2, tuple(span.hi for span in spans)).astype(np.float32)
    found = resample(
        values, (filter_of(spans[0], box=True, valid=valid), *(filter_of(s, box=False) for s in spans[1:]))
    )
    matrices = (_dense(spans[0], box=True, valid=valid), *(_dense(span, box=False) for span in spans[1:]))
    want = np.einsum("dx,hy,wz,xyz->dhw", *matrices, values.astype(np.float64))
    whole = found.transpose(2, 0, 3, 1, 4).reshape(want.shape)
    np.testing.assert_allclose(whole, want, rtol=1e-5, atol=1e-6)
    assert np.abs(want).max() > 0.1


def test_slices_that_keep_their_spacing_are_copied_bit_for_bit() -> None:
    values = np.random.default_rng(0).uniform(0, 2, (5, 1, 1)).astype(np.float32)
    one = filter_of(_span(1, 1, 0.0, 1.0, 1), box=False)
    found = resample(values, (filter_of(_span(2, 4, -2.0, 1.0, 5, box=True), box=True), one, one))
    assert np.array_equal(found.ravel(), np.concatenate([[0, 0], values.ravel(), [0]]).astype(np.float32))
