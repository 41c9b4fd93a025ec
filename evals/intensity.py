"""The pixel-statistics baseline: the histogram of each series, blind to where a voxel lies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from evals.cohort import Cohort
from evals.headers import sequence_kind
from evals.tables import FeatureTable
from fm.data.volume import SeriesImage
from fm.probes.types import Floats

PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)
BINS = np.linspace(0.0, 1.0, 17)
MAX_VOXELS = 50_000
"""Larger series are sampled evenly: percentiles change in the third digit, time falls tenfold."""

NAMES = [
    "body_share",
    "mean",
    "std",
    "skewness",
    "kurtosis",
    "log_signal",
    *(f"p{p}" for p in PERCENTILES),
    *(f"bin{b}" for b in range(len(BINS) - 1)),
]


def series_statistics(image: SeriesImage) -> Floats:
    """(C,) statistics of the body's voxels, normalised as the encoder sees them: 0.5–99.5 percentile to 0–1."""
    step = _stride(image.values.shape)
    inside = image.body.reshape(-1)[::step]
    body = image.values.reshape(-1)[::step][inside].astype(np.float64)
    if not len(body):
        return np.zeros(len(NAMES))
    values = np.clip((body - image.low) / max(image.high - image.low, 1e-9), -1.0, 4.0)
    mean, std = float(values.mean()), float(values.std())
    centred = (values - mean) / max(std, 1e-9)
    histogram = np.histogram(np.clip(values, 0.0, 1.0), BINS)[0] / len(values)
    squared = centred * centred
    shape = [float((squared * centred).mean()), float((squared * squared).mean())]
    signal = float(np.log1p(np.abs(body.mean())))
    first = [len(body) / len(inside), mean, std, *shape, signal]
    return np.array([*first, *np.percentile(values, PERCENTILES), *histogram])


def _stride(shape: tuple[int, ...]) -> int:
    """Step that leaves at most about MAX_VOXELS, made coprime to the row length so that it never walks down one
    column.
    """
    step = max(1, -(-math.prod(shape) // MAX_VOXELS))
    while math.gcd(step, shape[-1]) > 1:
        step += 1
    return step


def series_table(cohort: Cohort, statistics: Sequence[Floats]) -> FeatureTable:
    """(P, C) the statistics of the probed series, from those of all (M)."""
    place = {(row, series.name): at for at, (row, series) in enumerate(cohort.series)}
    chosen = [statistics[place[row, series.name]] for row, series in cohort.probed]
    return FeatureTable(columns=list(NAMES), values_NC=np.array(chosen).reshape(len(chosen), len(NAMES)))


def study_table(cohort: Cohort, statistics: Sequence[Floats]) -> FeatureTable:
    """(N, C) per sequence kind, the statistics of a study's first series of that kind."""
    rows: list[dict[str, float | str | None]] = [{} for _ in cohort.studies]
    pairs = list(zip(cohort.series, statistics, strict=True))
    for (at, series), values in reversed(pairs):
        kind = sequence_kind(series)
        rows[at] |= {f"{kind}:{name}": float(v) for name, v in zip(NAMES, values, strict=True)}
    return FeatureTable.of(rows)
