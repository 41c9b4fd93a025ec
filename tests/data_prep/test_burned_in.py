"""Text in the pixels: found when a name is written over a slice, and never in what is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFont

from data_prep.burned_in import holds_text
from data_prep.headers import HeaderReader
from data_prep.ledger import Reason, Rule
from data_prep.study import StudyResult

from .conftest import MakeSeries, edit, head


def written(volume: np.ndarray, size: int, level: float, smooth: bool, down: bool = False) -> np.ndarray:
    """The volume (slice, row, column) with a name in the corner of every slice, at a share of its brightness."""
    rows, columns = volume.shape[1:]
    picture = Image.new("L", (rows, columns) if down else (columns, rows), 0)
    draw = ImageDraw.Draw(picture)
    draw.fontmode = "L" if smooth else "1"
    draw.text((4, 4), "OKONKWO A. 04.03.1961", fill=255, font=ImageFont.load_default(size))
    share = np.asarray(picture, dtype=np.float64) / 255
    share = share.T if down else share
    return np.asarray(volume * (1 - share) + share * level * volume.max(), dtype=volume.dtype)


@pytest.mark.parametrize("size", [12, 16, 24])
@pytest.mark.parametrize("level", [1.0, 0.6])
@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize("down", [True, False])
def test_a_name_is_found_in_either_direction(size: int, level: float, smooth: bool, down: bool) -> None:
    clean = head(depth=4, rows=256, columns=256)
    assert not holds_text(clean.transpose(1, 2, 0).astype(np.float32))
    assert holds_text(written(clean, size, level, smooth, down).transpose(1, 2, 0).astype(np.float32))


def test_a_series_with_a_name_in_its_pixels_is_quarantined_unless_kept(
    make_series: MakeSeries, process: Callable[..., StudyResult]
) -> None:
    volume = written(head(depth=4, rows=160, columns=200), 14, 1.0, True)
    files = make_series(volume=volume)
    result = process(files)
    assert result.members == {}
    assert [(entry.reason, entry.files) for entry in result.tally.entries] == [(Reason.BURNED_IN, 4)]
    assert process(files, burned_in="keep").members


@pytest.mark.parametrize("kind", ["WSD", "DV"])
def test_a_screen_that_passes_for_mr_is_a_secondary_capture(make_series: MakeSeries, kind: str) -> None:
    (path, *_) = make_series()
    edit(path, ConversionType=kind)
    assert HeaderReader().read(str(path)) is Rule.SECONDARY_CAPTURE


def test_no_real_slice_is_taken_for_text_and_a_name_over_it_is(mri_dev: Path) -> None:
    series: dict[tuple[str, tuple[int, ...]], list[np.ndarray]] = {}
    for path in sorted((mri_dev / "dicom").rglob("*")):
        if path.is_file():
            ds = pydicom.dcmread(path)
            series.setdefault((str(ds.SeriesInstanceUID), ds.pixel_array.shape), []).append(ds.pixel_array)
    assert len(series) == 10
    for (_, shape), slices in series.items():
        volume = np.stack(slices).astype(np.float32)
        assert not holds_text(volume.transpose(1, 2, 0))
        if min(shape) >= 256:
            assert holds_text(written(volume, 16, 1.0, True).transpose(1, 2, 0))
