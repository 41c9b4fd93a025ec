"""Cross-sequence views: the crops of a study's series that share patient coordinates show the same place in mm.

One series of each frame of reference, the anchor, is drawn from as ever; the others follow it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from fm.data.sample import SeriesMeta
from fm.data.views import Draw
from fm.grid import apply_affine, invert_affine


def anchor_of(series: SeriesMeta, study: Sequence[SeriesMeta]) -> SeriesMeta:
    """The series that `series` follows: of those of a study in its frame of reference, the one with the largest body
    box in mm, the first where they are equal.
    """
    peers = [other for other in study if other.frame_of_reference == series.frame_of_reference]
    return max(peers, key=lambda other: float(np.prod(_box(other)[1] - _box(other)[0]) * np.prod(other.spacing_mm)))


def centre_of(series: SeriesMeta) -> NDArray[np.float64]:
    """(3,) centre of the foreground box in RAS+ mm: the origin of positions."""
    low, high = _box(series)
    return apply_affine(np.asarray(series.affine, dtype=np.float64), (low + high - 1) / 2)


def follow(own: dict[str, Draw], wanted: dict[str, Draw], anchor: SeriesMeta, series: SeriesMeta) -> dict[str, Draw]:
    """The draws of a series, at the places that its anchor's crops have in the patient.

    A crop becomes the smallest box of the series' own grid around the anchor's box, cut at the series' body: whatever
    of the anchor's crop the series shows lies in it, and what was nested stays nested. Between grids at an angle it is
    larger than the anchor's. A view of which the series shows nothing stays where the series' own numbers put it.

    Args:
        own: of the series, by view.
        wanted: of the anchor, the same views.
        anchor: the series that is followed.
        series: the series that follows.
    """
    if series.name == anchor.name:
        return own
    to_series = invert_affine(np.asarray(series.affine, dtype=np.float64)) @ np.asarray(anchor.affine, dtype=np.float64)
    low, high = _box(series)
    found = dict(own)
    for name, draw in wanted.items():
        first, last = _box(anchor)
        edges = [first + np.asarray(share) * (last - first) for share in (draw.start, draw.stop)]
        # Edges lie half a voxel before the centre of the first voxel.
        corners = np.array(list(product(*np.stack(edges, axis=1)))) - 0.5
        seen = apply_affine(to_series, corners) + 0.5
        start, stop = (np.clip((edge - low) / (high - low), 0, 1) for edge in (seen.min(axis=0), seen.max(axis=0)))
        if (stop > start).all():
            d, h, w = (float(share) for share in start)
            to_d, to_h, to_w = (float(share) for share in stop)
            found[name] = replace(own[name], start=(d, h, w), stop=(to_d, to_h, to_w))
    return found


def _box(series: SeriesMeta) -> NDArray[np.float64]:
    """(2, 3) first voxel of the foreground box and the one past its last."""
    return np.asarray(series.foreground, dtype=np.float64)
