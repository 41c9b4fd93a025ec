"""Checks on a clean head and on the same head with one planted defect each; the sensitivity over many is in docs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from data_prep.ledger import QuarantineError, Reason
from data_prep.quality import checks, measures
from data_prep.study import StudyResult
from fm.config.errors import ConfigError
from fm.config.prepare import PrepareConfig
from fm.config.quality import Action, LimitsConfig
from fm.data.sample import Contrast, Plane, Role, SeriesMeta, StudyMeta, from_json
from fm.grid import border_connected_air

from ..conftest import MakeSeries
from .defects import DEFECTS, Defect, Floats, noisy
from .measured import false_positives, sensitivity, series_of

AFFINE = [[0, 0, 2.5, -100], [0, 2.2, 0, -105], [5, 0, 0, -70], [0, 0, 0, 1]]


def phantom_head(seed: int = 0) -> Floats:
    """(28, 96, 80) of an ellipsoid of tissue with structure, in noise at an SNR of about 40."""
    rng = np.random.default_rng(seed)
    d, h, w = np.mgrid[-1:1:28j, -1:1:96j, -1:1:80j]
    body = (d / 1.1) ** 2 + (h / 0.8) ** 2 + (w / 0.75) ** 2 < 1
    structure = gaussian_filter(rng.standard_normal(body.shape), (2, 4, 4))
    picture = np.clip(600 + 150 * structure / structure.std(), 150, 1500) * body
    return np.hypot(picture + rng.normal(0, 15, body.shape), rng.normal(0, 15, body.shape)).astype(np.float32)


def seen(values: Floats, region: str = "head") -> tuple[checks.Picture, SeriesMeta]:
    valid = np.ones(len(values), dtype=bool)
    body = ~border_connected_air(values, valid)
    meta = SeriesMeta(
        name="t1w",
        contrast=Contrast.T1W,
        role=Role.ORIGINAL,
        plane=Plane.AXIAL,
        shape=values.shape,  # type: ignore[arg-type]
        spacing_mm=(5.0, 2.2, 2.5),
        affine=AFFINE,
        slice_position_mm=[5.0 * k for k in range(len(values))],
        slice_valid=[True] * len(values),
        frame_of_reference=0,
        foreground=((0, 0, 0), values.shape),  # type: ignore[arg-type]
        intensity_scale=1.0,
        intensity_offset=0.0,
        intensity_low=0.0,
        intensity_high=1000.0,
        region=region,
    )
    inside = values[body]
    meta.statistics = checks.describe(inside, np.percentile(inside, checks.PERCENTILES), 0.5, 0.0)
    return checks.Picture(values=values, body=body, valid=valid), meta


def flags(values: Floats, **limits: float) -> list[str]:
    return checks.judge(checks.measure(*seen(values)), LimitsConfig(**limits), {})


def test_a_clean_head_fails_nothing() -> None:
    assert flags(phantom_head()) == []


SUBTLE = "motion of 2 voxels"
"""So smooth a head hardly shows it; anatomy does, in the full test."""


@pytest.mark.parametrize("defect", [d for d in DEFECTS if d.words != SUBTLE], ids=lambda defect: defect.words)
def test_each_defect_is_found_by_its_check(defect: Defect) -> None:
    assert defect.check in flags(defect.plant(phantom_head(), np.random.default_rng(1)))


def test_snr_is_that_of_the_noise() -> None:
    """Uniform tissue, known sigma: within a tenth, also where the air was zeroed."""
    rng = np.random.default_rng(0)
    body = np.zeros((20, 96, 80), dtype=bool)
    body[:, 20:76, 16:64] = True
    picture = np.hypot(800 * body + rng.normal(0, 40, body.shape), rng.normal(0, 40, body.shape)).astype(np.float32)
    valid = np.ones(20, dtype=bool)
    assert measures.signal_to_noise(picture, body, valid) == pytest.approx(20, rel=0.1)
    assert measures.signal_to_noise(np.where(body, picture, 0), body, valid) == pytest.approx(20, rel=0.1)


def test_ghosts_are_not_looked_for_where_air_was_zeroed() -> None:
    values = phantom_head()
    valid = np.ones(len(values), dtype=bool)
    assert measures.ghosting(np.where(border_connected_air(values), 0, values), valid) is None


def test_the_vertex_must_be_there() -> None:
    values = phantom_head()
    picture, meta = seen(values[:14])
    meta.slice_position_mm = meta.slice_position_mm[:14]
    assert {"cut_off", "short_coverage"} <= set(checks.judge(checks.measure(picture, meta), LimitsConfig(), {}))
    _, elsewhere = seen(values[:14], region="abdomen")
    assert "cut_off" not in checks.measure(picture, elsewhere)


def test_geometry() -> None:
    picture, meta = seen(phantom_head())
    meta.affine = [[0, 0, 2.5, -100], [1.0, 2.2, 0, -105], [5, 0, 0, -70], [0, 0, 0, 1]]
    meta.slice_position_mm[5] += 0.3
    meta.spacing_mm = (12.0, 2.2, 2.5)
    picture.valid[7] = False
    found = checks.measure(picture, meta)
    assert found["sheared"] == pytest.approx(np.degrees(np.arctan2(1, 5)), abs=0.01)
    assert found["uneven_slices"] == pytest.approx(0.06)
    assert found["missing_slices"] == pytest.approx(1 / 28, abs=1e-4)
    assert checks.judge(found, LimitsConfig(), {}) == ["coarse_voxels", "missing_slices", "sheared", "uneven_slices"]


def test_a_limit_and_an_action_change_what_happens() -> None:
    poor = noisy(phantom_head(), np.random.default_rng(0), 4)
    assert "low_snr" in flags(poor) and "low_snr" not in flags(poor, low_snr=2)
    found = checks.measure(*seen(poor))
    assert "low_snr" not in checks.judge(found, LimitsConfig(), {"low_snr": Action.ignore})
    with pytest.raises(QuarantineError) as err:
        checks.judge(found, LimitsConfig(), {"low_snr": Action.quarantine})
    assert err.value.reason is Reason.LOW_SNR


def test_every_check_is_a_reason_and_unknown_ones_are_refused() -> None:
    assert all(Reason(name) for name in LimitsConfig.__dataclass_fields__)
    with pytest.raises(ConfigError, match=r"prepare\.actions\.snr: no such check"):
        PrepareConfig(actions={"snr": Action.flag})
    with pytest.raises(ConfigError, match=r"prepare\.limits\.low_snr=-1"):
        LimitsConfig(low_snr=-1)


def test_a_series_carries_its_statistics_and_flags(
    make_series: MakeSeries, process: Callable[..., StudyResult]
) -> None:
    values = phantom_head()
    values[5] = 0
    result = process(make_series(volume=np.rint(values).astype(np.uint16)))
    study: StudyMeta = from_json(result.members["json"])
    (series,) = study.series
    assert "blank_slices" in series.flags and series.quality["blank_slices"] == 1
    assert series.statistics is not None and series.statistics.quantisation_error == 0
    low, *_, high = series.statistics.percentiles
    assert 0 < low < series.statistics.mean < high and 0.2 < series.statistics.foreground_share < 0.6


def test_quarantine_leaves_a_picture_and_an_entry(make_series: MakeSeries, process: Callable[..., StudyResult]) -> None:
    values = noisy(phantom_head(), np.random.default_rng(0), 3)
    files = make_series(volume=np.rint(values).astype(np.uint16))
    result = process(files, actions={"low_snr": Action.quarantine})
    assert result.members == {} and [e.reason for e in result.tally.entries] == [Reason.LOW_SNR]
    (picture,) = result.tally.pictures["low_snr"]
    assert picture.startswith("data:image/jpeg;base64,") and len(picture) < 12_000
    assert result.tally.quarantined_files == len(files)


def test_n4_takes_a_receive_field_out(make_series: MakeSeries, process: Callable[..., StudyResult]) -> None:
    pytest.importorskip("SimpleITK")
    values = phantom_head()
    values = np.where(border_connected_air(values), values, 600)
    field = np.exp(np.linspace(-0.5, 0.5, values.shape[2]))[None, None, :]
    files = make_series(volume=np.rint(values * field).astype(np.uint16))
    plain, corrected = (from_json(process(files, n4=n4).members["json"]).series[0] for n4 in (False, True))
    assert corrected.bias_corrected and not plain.bias_corrected
    assert plain.statistics is not None and corrected.statistics is not None
    (low, high), (new_low, new_high) = (
        (s.statistics.percentiles[2], s.statistics.percentiles[4]) for s in (plain, corrected) if s.statistics
    )
    assert high / low > 1.3 and new_high / new_low < 1.05
    assert corrected.statistics.mean == pytest.approx(plain.statistics.mean, rel=1e-3)
    acquired = set(plain.quality) - {"low_contrast"}
    assert all(corrected.quality[name] == plain.quality[name] for name in acquired)
    assert corrected.likeness == plain.likeness


@pytest.mark.full
def test_sensitivity_and_false_positives_over_a_phantom(tmp_path: Path) -> None:
    """The figures of docs/quality.md hold to within a few series on another phantom."""
    from data_prep.phantom import simulate
    from fm.config.phantom import PhantomConfig

    simulate(tmp_path, 30, 5, PhantomConfig(), 2)
    series = series_of(tmp_path / "dicom", tmp_path / "truth.jsonl")
    for name, (found, planted) in sensitivity(series).items():
        subtle = "10 %" in name or "motion" in name or "35" in name
        assert found >= (0.5 if subtle else 0.9) * planted, (name, found, planted)
    structural, _ = false_positives(series)
    assert structural["any"] <= 0.05 * structural["series"], structural
