"""Row 23: the same volume twice, exact and saved again; distinct volumes of one protocol stay distinct."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

from data_prep.duplicates import (
    CANDIDATE_BITS,
    MIN_CORRELATION,
    Fingerprint,
    detail_correlation,
    find_duplicates,
    likeness,
    superfluous,
    voxel_hash,
)
from fm.grid import border_connected_air

Floats = NDArray[np.float32]
AFFINE = np.array([[0, 0, 2.5, -100], [0, 2.2, 0, -105], [5, 0, 0, -70], [0, 0, 0, 1.0]])


def brain(seed: int) -> Floats:
    """(28, 96, 80): one protocol and shape, another patient for another seed."""
    rng = np.random.default_rng(seed)
    d, h, w = np.mgrid[-1:1:28j, -1:1:96j, -1:1:80j]
    a, b, c = rng.normal(1, 0.03, 3)
    body = (d / 1.1 / a) ** 2 + (h / 0.8 / b) ** 2 + (w / 0.75 / c) ** 2 < 1
    structure = gaussian_filter(rng.standard_normal(body.shape), (2, 7, 7))
    tissue = 600 + 220 * structure / structure.std()
    return np.clip(tissue + rng.normal(0, 15, body.shape), 100, 1500).astype(np.float32) * body


def again(values: Floats, how: str) -> tuple[Floats, NDArray[np.float64]]:
    """The same volume as another system gives it."""
    rng = np.random.default_rng(9)
    if how == "noise":
        return np.abs(values + rng.normal(0, 30, values.shape)).astype(np.float32), AFFINE
    if how == "rescaled":
        return np.rint(0.37 * values + 5).astype(np.float32), AFFINE
    if how == "one slice shifted":
        return np.roll(values, 1, axis=0), AFFINE
    if how == "one slice fewer":
        return values[1:], AFFINE
    if how == "resampled":
        return zoom(values, (1, 0.8, 0.8), order=1), AFFINE
    # stored the other way round: sagittal slices, the affine says so
    turned = np.ascontiguousarray(values.transpose(2, 0, 1))
    return turned, AFFINE[:, [2, 0, 1, 3]]


def fingerprint(values: Floats, affine: NDArray[np.float64], study: str, **words: str) -> Fingerprint:
    valid = np.ones(len(values), dtype=bool)
    body = ~border_connected_air(values, valid)
    parts = {"series": "t1w", "patient": study, "kind": "t1w"} | words
    return Fingerprint(
        study=study, voxel_hash=voxel_hash(values, valid), likeness=likeness(values, body, affine), **parts
    )


def find(volumes: dict[str, tuple[Floats, NDArray[np.float64]]]) -> list[tuple[str, str, bool]]:
    series = [fingerprint(*volume, study) for study, volume in volumes.items()]

    def stored(entry: Fingerprint) -> tuple[Floats, NDArray[np.float64]]:
        values, affine = volumes[entry.study]
        return np.where(border_connected_air(values), 0, values), affine

    found = find_duplicates(series, stored)
    return [(pair.first.study, pair.second.study, pair.exact) for pair in found]


def test_row_23_an_exact_copy_in_two_studies() -> None:
    volumes = {name: (brain(seed), AFFINE) for name, seed in (("a", 0), ("b", 1), ("c", 0))}
    assert find(volumes) == [("a", "c", True)]


@pytest.mark.parametrize(
    "how", ["noise", "rescaled", "one slice shifted", "one slice fewer", "resampled", "stored otherwise"]
)
def test_row_23_a_copy_saved_again(how: str) -> None:
    volumes = {"a": (brain(0), AFFINE), "b": again(brain(0), how), "c": (brain(1), AFFINE)}
    assert find(volumes) == [("a", "b", False)]


def test_distinct_volumes_of_one_protocol_are_no_duplicates() -> None:
    volumes = {f"{seed:03d}": (brain(seed), AFFINE) for seed in range(40)}
    assert find(volumes) == []
    assert detail_correlation(brain(0), AFFINE, brain(1), AFFINE) < MIN_CORRELATION
    bits = [
        sum((x ^ y).bit_count() for x, y in zip(*(bytes.fromhex(f.likeness) for f in pair), strict=True))
        for pair in [(fingerprint(brain(0), AFFINE, "a"), fingerprint(brain(s), AFFINE, "b")) for s in range(1, 20)]
    ]
    assert min(bits) > CANDIDATE_BITS


def test_series_of_one_study_with_other_contrast_share_an_anatomy_not_a_volume() -> None:
    noisy, _ = again(brain(0), "noise")
    noisy *= brain(0) > 0
    volumes = {"plain": brain(0), "agent": noisy}
    for kinds, wanted in ((("t1w no", "t1w yes"), 0), (("t1w no", "t1w no"), 1)):
        series = [
            fingerprint(volume, AFFINE, "a", series=name, kind=kind)
            for (name, volume), kind in zip(volumes.items(), kinds, strict=True)
        ]
        assert len(find_duplicates(series, lambda entry: (volumes[entry.series], AFFINE))) == wanted


def test_missing_slices_do_not_hide_an_exact_copy_and_an_empty_volume_has_no_likeness() -> None:
    values, valid = brain(0), np.ones(28, dtype=bool)
    valid[5] = False
    other = values.copy()
    other[5] = 7
    assert voxel_hash(values, valid) == voxel_hash(other, valid) != voxel_hash(values, ~valid)
    assert likeness(np.zeros_like(values), np.zeros(values.shape, dtype=bool), AFFINE) == ""


def test_of_each_pair_the_study_with_the_later_key_goes() -> None:
    volumes = {name: (brain(0), AFFINE) for name in ("b", "a", "c")}
    series = [fingerprint(*volume, study) for study, volume in volumes.items()]
    assert superfluous(find_duplicates(series, lambda entry: volumes[entry.study]), set(), set()) == {"b", "c"}
