"""The receive field taken out of a volume: N4 (Tustison et al., IEEE Trans Med Imaging 29:1310, 2010) by SimpleITK."""

from __future__ import annotations

import importlib.util

import numpy as np
from numpy.typing import NDArray

from fm.config.errors import UserError

QUANTITATIVE = frozenset({"adc"})
"""Contrasts whose values mean something by themselves: left as they are."""
_ITERATIONS = [30, 30, 20]


def require_n4() -> None:
    """Look for SimpleITK.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("SimpleITK") is None:
        raise UserError("prepare.n4=true needs SimpleITK: pip install 'fm[n4]'")


def correct_bias(
    values: NDArray[np.float32], body: NDArray[np.bool_], spacing_mm: tuple[float, float, float], shrink: int
) -> NDArray[np.float32]:
    """Divide the body by its estimated receive field; the mean of the body stays, air stays as it is.

    Args:
        values: (D, H, W).
        body: (D, H, W), what the field is estimated on.
        spacing_mm: along (D, H, W).
        shrink: the field is estimated on every `shrink`-th voxel in the plane, and along D where slices are as dense.
    """
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    image = sitk.GetImageFromArray(np.maximum(values, 0))
    mask = sitk.GetImageFromArray(body.astype(np.uint8))
    for volume in (image, mask):
        volume.SetSpacing(spacing_mm[::-1])
    along = max(1, round(shrink * min(spacing_mm[1:]) / spacing_mm[0]))
    factors = [shrink, shrink, along]
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations(_ITERATIONS)
    n4.SetNumberOfControlPoints([5, 5, 4])
    n4.Execute(sitk.Shrink(image, factors), sitk.Shrink(mask, factors))
    field = np.exp(sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)))
    corrected = np.where(body, values / np.maximum(field, 1e-3), values).astype(np.float32)
    mean = float(corrected[body].mean(dtype=np.float64))
    if not np.isfinite(corrected).all() or mean <= 0:
        return values
    corrected[body] *= float(values[body].mean(dtype=np.float64)) / mean
    return corrected
