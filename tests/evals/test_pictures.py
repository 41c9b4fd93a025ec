from __future__ import annotations

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.image import imread

from evals.pictures import most_detailed_slice, picture
from fm.data.sample import Contrast
from fm.data.volume import from_sample


def test_the_patients_right_is_on_the_left_and_anterior_up(drawn: SimpleNamespace) -> None:
    rng = np.random.default_rng(0)
    values = drawn.draw(rng, {"lesion": 1, "lesion_side": "right"}, dark=False)
    values[:, 24:27, 12:16] += 500.0 * (values[:, 24:27, 12:16] > 0)
    meta, payload = drawn.series("t1w", values, Contrast.T1W)
    found = picture(meta, from_sample(meta, payload))
    assert found.uri.startswith("data:image/png;base64,")
    pixels = imread(io.BytesIO(base64.b64decode(found.uri.split(",")[1])))[..., 0]
    assert pixels.shape == (32, 28)
    bright = pixels > 0.75
    # The block on the patient's right (w 16–21 of 28) comes out left of the middle, the anterior mark near the top.
    middle_rows = bright[13:21]
    assert middle_rows[:, :14].sum() > 20 and middle_rows[:, 14:].sum() < 5
    assert bright[:9].sum() > 5 and bright[24:].sum() == 0
    assert found.width_mm / found.height_mm == pytest.approx(28 / 32)


def test_the_slice_with_most_detail_is_valid_and_in_range() -> None:
    values = np.zeros((7, 8, 8), dtype=np.float32)
    values[1, ::2] = 9.0
    values[3, ::2] = 5.0
    values[4, ::2] = 4.0
    valid = [True] * 7
    assert most_detailed_slice(values, valid, 0, 7) == 1
    assert most_detailed_slice(values, valid, 2, 6) == 3
    valid[3] = False
    assert most_detailed_slice(values, valid, 2, 6) == 4
    assert most_detailed_slice(np.zeros((7, 8, 8), dtype=np.float32), valid, 2, 6) == 4
