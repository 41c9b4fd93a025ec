"""The contrast of a head by its voxels, for series of which neither physics nor words tell anything.

Deep in the head, fluid is the brightest tissue on T2w and the darkest on T1w and FLAIR; the fat under the scalp is far
brighter than brain on T1w. Bounds are wide gaps between the contrasts; what lies in no gap stays unknown.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data_prep.sequences.answer import Answer
from fm.data.sample import Contrast
from fm.grid import border_connected_air, spacing_of

_DEEP_MM = 25.0
_RIM_MM = (2.0, 9.0)
_STEP_MM = 2.0
_FEWEST = 500
"""Deep voxels below which nothing is said."""


def contrast_by_voxels(values: NDArray[np.float32], affine: NDArray[np.float64]) -> Answer[Contrast] | None:
    """T2w, T1w or FLAIR of a head, or None.

    Args:
        values: (column, row, slice) voxels.
        affine: (4, 4) to RAS+ mm.
    """
    # every few millimetres is enough for percentiles, and ten times as fast
    stride = [max(1, int(_STEP_MM / step)) for step in spacing_of(affine)]
    slices = np.ascontiguousarray(values[:: stride[0], :: stride[1], :: stride[2]].transpose(2, 0, 1))
    air = border_connected_air(slices, np.ones(len(slices), dtype=bool))
    body = np.stack([ndimage.binary_fill_holes(part) for part in ~air])
    areas = body.sum(axis=(1, 2))
    spacing = [float(step * by) for step, by in zip(spacing_of(affine)[:2], stride[:2], strict=True)]
    large = np.flatnonzero(areas > 0.6 * areas.max(initial=1))
    if len(large) == 0:
        return None
    depth = np.stack([ndimage.distance_transform_edt(body[index], sampling=spacing) for index in large])
    picture = slices[large]
    deep = picture[depth > _DEEP_MM]
    rim = picture[(depth > _RIM_MM[0]) & (depth < _RIM_MM[1])]
    if len(deep) < _FEWEST or len(rim) < _FEWEST or float(np.median(deep)) <= 0:
        return None
    dark, bright = np.percentile(deep, (5, 95)) / np.median(deep)
    fat = float(np.percentile(rim, 90) / np.median(deep))
    if bright >= 1.85 and dark < 0.4:
        return Answer(value=Contrast.T2W, confidence=0.5, rule="voxels, bright fluid")
    if fat >= 2.4 and 0.19 <= dark < 0.35:
        return Answer(value=Contrast.T1W, confidence=0.4, rule="voxels, dark fluid, bright fat")
    if 1.1 <= fat < 2.2 and dark < 0.3 and bright < 1.6:
        return Answer(value=Contrast.FLAIR, confidence=0.4, rule="voxels, dark fluid, grey fat")
    return None
