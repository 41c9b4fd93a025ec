"""Slices of a study as PNG, turned the way a radiologist looks at them."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from matplotlib.image import imsave
from numpy.typing import NDArray

from fm.data.sample import SeriesMeta
from fm.data.volume import SeriesImage

MAX_PIXELS = 256
"""Longer edge of a picture."""


@dataclass(kw_only=True, slots=True)
class Picture:
    """One slice, ready for the page."""

    name: str
    plane: str
    slice: int
    """Index along D."""
    uri: str
    """PNG as a data: address."""
    width_mm: float
    height_mm: float


def picture(meta: SeriesMeta, image: SeriesImage) -> Picture:
    """The slice of a series with the most detail, head or front up, the patient's right on the left.

    Args:
        meta: of the series; says which slices are valid.
        image: its voxels, whole; their intensity range becomes black to white.
    """
    start, stop = _middle(image.foreground[0][0], image.foreground[1][0])
    chosen = most_detailed_slice(image.values * image.body, meta.slice_valid, start, stop)
    reach = max(image.high - image.low, 1e-9)
    grey = np.clip((image.values[chosen] - image.low) / reach, 0.0, 1.0) * image.body[chosen]
    step = max(1, -(-max(grey.shape) // MAX_PIXELS))
    # H runs toward superior or anterior and W toward right or anterior: both are drawn the other way round.
    grey = grey[::-step, ::-step]
    sink = io.BytesIO()
    imsave(sink, (grey * 255).astype(np.uint8), cmap="gray", vmin=0, vmax=255, format="png", metadata={"Software": ""})
    return Picture(
        name=meta.name,
        plane=meta.plane.value,
        slice=chosen,
        uri="data:image/png;base64," + base64.b64encode(sink.getvalue()).decode(),
        width_mm=meta.shape[2] * meta.spacing_mm[2],
        height_mm=meta.shape[1] * meta.spacing_mm[1],
    )


def most_detailed_slice(values: NDArray[np.float32], slice_valid: list[bool], start: int, stop: int) -> int:
    """Index along D of the valid slice in a range with the largest summed in-plane gradient; its middle if all are
    flat.

    Args:
        values: (D, H, W), zero outside the body.
        slice_valid: (D,) False where a slice is missing.
        start: first slice of the range.
        stop: behind its last slice.
    """
    detail = np.abs(np.diff(values, axis=1)).sum(axis=(1, 2)) + np.abs(np.diff(values, axis=2)).sum(axis=(1, 2))
    depth = np.arange(values.shape[0])
    wanted = np.asarray(slice_valid, dtype=bool) & (depth >= start) & (depth < stop)
    detail = np.where(wanted, detail, -1.0)
    return int(detail.argmax()) if detail.max() > 0 else (start + stop) // 2


def _middle(start: int, stop: int) -> tuple[int, int]:
    """The middle two fifths of the body: of a head, brain and neither face nor vertex."""
    margin = int((stop - start) * 0.3)
    return start + margin, max(stop - margin, start + margin + 1)
