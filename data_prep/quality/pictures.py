"""Thumbnails: one slice and one cut through all slices, side by side, as small JPEG data addresses."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fm.data.codec import decode_volume
from fm.data.sample import SeriesMeta

SIDE = 104
"""Pixels of each of the two pictures."""
_QUALITY = 72


def thumbnail(values: NDArray[np.float32], meta: SeriesMeta) -> str:
    """A series as a data: address: the middle slice of the body, and the cut across the slices through its middle.

    Head or front is up, the patient's right on the left; black to white is the series' own intensity range.

    Args:
        values: (D, H, W), the scanner's units.
        meta: of the series.
    """
    (d0, h0, _), (d1, h1, _) = meta.foreground
    spacing = meta.spacing_mm
    middle = _nearest_valid(meta, (d0 + d1) // 2)
    along = (h0 + h1) // 2
    panes = [_pane(values[middle], spacing[1], spacing[2], meta), _pane(values[:, along], spacing[0], spacing[2], meta)]
    sheet = Image.new("L", (2 * SIDE + 2, SIDE))
    for number, pane in enumerate(panes):
        sheet.paste(pane, (number * (SIDE + 2) + (SIDE - pane.width) // 2, (SIDE - pane.height) // 2))
    sink = io.BytesIO()
    sheet.save(sink, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(sink.getvalue()).decode()


def stored_thumbnail(payload: bytes | memoryview, meta: SeriesMeta) -> str:
    """The thumbnail of a stored member; air is black."""
    stored = decode_volume(payload)
    values = stored.astype(np.float32) * np.float32(meta.intensity_scale) + np.float32(meta.intensity_offset)
    return thumbnail(np.where(stored > 0, values, meta.intensity_low).astype(np.float32), meta)


def _nearest_valid(meta: SeriesMeta, wanted: int) -> int:
    valid = np.flatnonzero(meta.slice_valid)
    return int(valid[np.abs(valid - wanted).argmin()])


def _pane(picture: NDArray[np.float32], up_mm: float, across_mm: float, meta: SeriesMeta) -> Image.Image:
    """One picture in true proportions; both axes grow toward R, A or S and are drawn the other way round."""
    reach = max(meta.intensity_high - meta.intensity_low, 1e-9)
    grey = np.clip((picture - meta.intensity_low) / reach, 0, 1)[::-1, ::-1]
    height, width = picture.shape[0] * up_mm, picture.shape[1] * across_mm
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = Image.fromarray((grey * 255).astype(np.uint8))
    return image.resize(size, Image.Resampling.BOX if min(picture.shape) > SIDE else Image.Resampling.BILINEAR)
