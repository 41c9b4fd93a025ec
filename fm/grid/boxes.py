"""Half-open voxel boxes: ((start, start, start), (stop, stop, stop))."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[tuple[int, int, int], tuple[int, int, int]]


def full_box(shape: tuple[int, ...]) -> Box:
    """The box that holds a whole volume of `shape` (D, H, W)."""
    d, h, w = shape
    return (0, 0, 0), (d, h, w)


def bounding_box(mask: NDArray[Any]) -> Box | None:
    """Smallest box that holds every True voxel of `mask` (D, H, W); None where there is none."""
    start: list[int] = []
    stop: list[int] = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        hits = np.flatnonzero(mask.any(axis=others))
        if hits.size == 0:
            return None
        start.append(int(hits[0]))
        stop.append(int(hits[-1]) + 1)
    return (start[0], start[1], start[2]), (stop[0], stop[1], stop[2])


def clip_box(box: Box, shape: tuple[int, ...]) -> Box | None:
    """The part of `box` inside a volume of `shape` (D, H, W); None where they do not meet."""
    start = tuple(max(0, a) for a in box[0])
    stop = tuple(min(n, b) for b, n in zip(box[1], shape, strict=True))
    if any(b <= a for a, b in zip(start, stop, strict=True)):
        return None
    return (start[0], start[1], start[2]), (stop[0], stop[1], stop[2])


def box_slices(box: Box) -> tuple[slice, slice, slice]:
    """The index of a box: ``volume[box_slices(box)]``."""
    a, b, c = (slice(start, stop) for start, stop in zip(*box, strict=True))
    return a, b, c
