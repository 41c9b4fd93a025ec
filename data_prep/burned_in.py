"""Text written into the pixels: the tag that should tell of it (BurnedInAnnotation) is absent from most MR headers.

Letters are thin pieces of equal height that stand in a row; anatomy has no such rows. They are sought where many voxels
share one value that their neighbours in the histogram do not, and among what is bright at one place in every slice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

_BINS = 4096
_FEWEST = 60
"""Voxels of a slice that share a value before it is looked at: four small letters."""
_HEIGHTS = (5, 64)
"""Letters in pixels."""
_LETTERS = 4
"""Pieces in a row that make it text."""
_MOST_SLICES = 24
_LEVELS = (0.2, 0.4, 0.6)
"""Of the range: what is brighter in every slice may be smoothed letters over air."""


def holds_text(values: NDArray[np.float32]) -> bool:
    """Whether a volume (X, Y, slices) seems to have text written into its slices, in either direction of reading."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite((low, high)).all() or high <= low:
        return False
    everywhere = values.min(axis=2) - low
    if any(_rows_of_letters(everywhere > level * (high - low)) for level in _LEVELS):
        return True
    codes = ((values - low) * ((_BINS - 1) / (high - low))).astype(np.int32)
    for code, width in _flat_values(codes):
        mask = np.abs(codes - code) <= width
        counts = mask.sum(axis=(0, 1))
        chosen = np.argsort(-counts, kind="stable")[:_MOST_SLICES]
        for k in chosen[counts[chosen] >= _FEWEST]:
            if _rows_of_letters(mask[..., k]):
                return True
    return False


def _flat_values(codes: NDArray[np.int32]) -> list[tuple[int, int]]:
    """Values that stand out of the histogram, the brightest among them, with the width of each."""
    counts = np.bincount(codes.ravel(), minlength=_BINS)
    around = ndimage.median_filter(counts, 41, mode="nearest")
    spikes = np.flatnonzero((counts >= _FEWEST) & (counts > 8 * (around + 1)))
    brightest = sorted(spikes[spikes > _BINS // 16], key=lambda code: -counts[code])[:4]
    return [(_BINS - 1, _BINS // 32), *((int(code), 1) for code in brightest)]


def _rows_of_letters(mask: NDArray[np.bool_]) -> bool:
    pieces, count = ndimage.label(mask, np.ones((3, 3), dtype=int))
    if count < _LETTERS:
        return False
    boxes = ndimage.find_objects(pieces)
    areas = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    sizes = np.array([[part.stop - part.start for part in box] for box in boxes])
    starts = np.array([[part.start for part in box] for box in boxes])
    depth: NDArray[np.int_] | None = None
    for tall in (0, 1):
        height, width = sizes[:, tall], sizes[:, 1 - tall]
        letters = (height >= _HEIGHTS[0]) & (height <= _HEIGHTS[1]) & (width <= 5 * height)
        # letters leave much of their box free, or are one upright stroke
        letters &= (areas < 0.8 * height * width) | (width <= 0.4 * height)
        letters &= areas >= 0.12 * height * width
        if letters.sum() < _LETTERS:
            continue
        if depth is None:
            depth = ndimage.maximum(ndimage.distance_transform_cdt(mask), pieces, np.arange(1, count + 1))
        letters &= 2 * depth <= np.maximum(3, 0.5 * height)  # strokes are thin
        row = [pieces[boxes[k]] == k + 1 for k in np.flatnonzero(letters)]
        count_of = np.array([_letters_in(part if tall == 0 else part.T) for part in row])
        if _aligned(starts[letters, tall], starts[letters, 1 - tall], height[letters], width[letters], count_of):
            return True
    return False


def _letters_in(piece: NDArray[np.bool_]) -> int:
    """Letters of a piece: letters that touch have two strokes each, the rim of a body has one or two over all."""
    strokes = int((np.diff(piece.astype(np.int8), axis=1, prepend=0) == 1).sum(axis=1).max())
    return max(1, min(int(np.rint(piece.shape[1] / piece.shape[0])), strokes // 2))


def _aligned(
    top: NDArray[np.int_],
    left: NDArray[np.int_],
    height: NDArray[np.int_],
    width: NDArray[np.int_],
    letters: NDArray[np.int_],
) -> bool:
    """Whether enough pieces of about one height stand on one line, close to each other."""
    order = np.argsort(left)
    for first in order:
        row = (np.abs(height - height[first]) <= 0.25 * height[first]) & (
            np.abs(top + height - top[first] - height[first]) <= np.maximum(1, 0.15 * height[first])
        )
        chain = [k for k in order if row[k] and left[k] >= left[first]]
        length, count, end = 0, 0, left[first]
        for k in chain:
            if left[k] - end > 1.5 * height[first]:
                break
            length, count, end = length + int(letters[k]), count + 1, left[k] + width[k]
        if length >= _LETTERS and count > 2 and end - left[first] >= 2 * height[first]:
            return True
    return False
