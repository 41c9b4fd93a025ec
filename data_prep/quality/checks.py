"""Measures against limits: which checks a series fails, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.ledger import QuarantineError, Reason
from data_prep.quality import measures
from fm.config.quality import Action, LimitsConfig
from fm.data.sample import SeriesMeta, Statistics

BELOW = frozenset({"low_contrast", "low_snr", "short_coverage"})
"""Checks that a value under the limit fails; all others fail above it."""
HEAD = "head"
_COARSE = 128
"""In-plane voxels that ghosts and slices are judged by."""
PERCENTILES = (1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0)


@dataclass(kw_only=True, slots=True)
class Picture:
    """What the measures read: the voxels as acquired, before air is zeroed."""

    values: NDArray[np.float32]
    """(D, H, W)"""
    body: NDArray[np.bool_]
    """(D, H, W)"""
    valid: NDArray[np.bool_]
    """(D,)"""


def thinned(shape: tuple[int, ...]) -> tuple[slice, slice, slice]:
    """Index of every n-th voxel in the plane: what is judged coarsely is no better for more than 128 by 128."""
    step = max(1, max(shape[1:]) // _COARSE)
    return slice(None), slice(None, None, step), slice(None, None, step)


def describe(
    inside: NDArray[np.float32], percentiles: NDArray[np.float64], foreground: float, error: float
) -> Statistics:
    """Statistics of the body's voxels, to six digits.

    Args:
        inside: (N,) body voxels, the scanner's units.
        percentiles: of them, at :data:`PERCENTILES`.
        foreground: their share of the volume.
        error: largest difference between a voxel and its stored value.
    """
    return Statistics(
        mean=_short(float(inside.mean(dtype=np.float64))),
        std=_short(float(inside.std(dtype=np.float64))),
        percentiles=[_short(float(value)) for value in percentiles],
        foreground_share=_short(foreground),
        quantisation_error=_short(error),
    )


def measure(picture: Picture, meta: SeriesMeta) -> dict[str, float]:
    """Value of every check that can be judged, to four digits; the rest is absent."""
    values, body, valid = picture.values, picture.body, picture.valid
    affine = np.asarray(meta.affine)
    thin = thinned(values.shape)
    banding, outlier, shift = measures.slice_profile(values[thin], body[thin], valid)
    found: dict[str, float | None] = {
        "clipped": measures.clipped_share(values, body),
        "blank_slices": measures.blank_slices(values, body, valid),
        "low_snr": measures.signal_to_noise(values, body, valid),
        "ghosting": measures.ghosting(values[thin], valid),
        "banding": banding,
        "slice_outlier": outlier,
        "slice_shift": None if shift is None else shift * (thin[1].step or 1) * meta.spacing_mm[1],
        "missing_slices": 1 - float(valid.mean()),
        "uneven_slices": measures.unevenness(meta.slice_position_mm, valid),
        "sheared": measures.shear_deg(affine),
        "coarse_voxels": max(meta.spacing_mm),
    }
    if meta.statistics is not None:
        low, high = meta.statistics.percentiles[1], meta.statistics.percentiles[5]
        found["low_contrast"] = (high - low) / high if high > 0 else None
    if meta.region == HEAD:
        found["short_coverage"], found["cut_off"] = measures.coverage(body, affine, meta.spacing_mm)
    return {name: float(f"{value:.4g}") for name, value in sorted(found.items()) if value is not None}


def limit_of(limits: LimitsConfig) -> dict[str, float]:
    """Limit of every check, by name."""
    return {
        "banding": limits.banding,
        "blank_slices": limits.blank_slices,
        "clipped": limits.clipped,
        "coarse_voxels": limits.coarse_voxels,
        "cut_off": limits.cut_off,
        "ghosting": limits.ghosting,
        "low_contrast": limits.low_contrast,
        "low_snr": limits.low_snr,
        "missing_slices": limits.missing_slices,
        "sheared": limits.sheared,
        "short_coverage": limits.short_coverage,
        "slice_outlier": limits.slice_outlier,
        "slice_shift": limits.slice_shift,
        "uneven_slices": limits.uneven_slices,
    }


def judge(values: dict[str, float], limits: LimitsConfig, actions: Mapping[str, Action]) -> list[str]:
    """Names of the checks that a series fails, in order of their names.

    Raises:
        QuarantineError: one of them quarantines; its name is the reason.
    """
    failed = []
    for check, limit in limit_of(limits).items():
        value, action = values.get(check), actions.get(check, Action.flag)
        if value is None or action is Action.ignore:
            continue
        if value < limit if check in BELOW else value > limit:
            if action is Action.quarantine:
                raise QuarantineError(Reason(check))
            failed.append(check)
    return failed


def _short(value: float) -> float:
    return float(f"{value:.6g}")
