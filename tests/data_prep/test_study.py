"""One study in a worker: rows 5, 13, 15 and 21, and what becomes of its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from data_prep.ledger import Reason
from data_prep.normalise import encode_series
from data_prep.study import StudyResult, guarded_study, mean_volumes
from fm.data.codec import decode_volume
from fm.data.sample import Agent, Contrast, Plane, StudyMeta, from_json
from fm.grid import apply_affine

from .conftest import MakeSeries, edit, head

Process = Callable[..., StudyResult]


def meta(result: StudyResult) -> StudyMeta:
    return from_json(result.members["json"])


def test_a_study_becomes_a_sample(make_series: MakeSeries, process: Process) -> None:
    files = make_series() + make_series(
        folder="in/b",
        series="b",
        SeriesNumber="4",
        RepetitionTime="500",
        EchoTime="10",
        ContrastBolusAgent="gadobutrol 7 ml",
        ImageOrientationPatient=["0", "1", "0", "0", "0", "-1"],
    )
    result = process(files)
    study = meta(result)
    assert (study.region, study.age, study.sex) == ("head", 59, "f")
    t2w, t1w = study.series
    assert (t2w.name, t2w.contrast, t2w.plane, t2w.agent) == ("t2w", Contrast.T2W, Plane.AXIAL, Agent.UNKNOWN)
    assert (t1w.name, t1w.contrast, t1w.plane, t1w.agent) == ("t1w_c", Contrast.T1W, Plane.SAGITTAL, Agent.YES)
    assert (t2w.shape, t2w.spacing_mm) == ((6, 48, 40), pytest.approx((5.0, 2.0, 2.5)))
    assert t2w.frame_of_reference == t1w.frame_of_reference == 0
    assert (t2w.repetition_time_ms, t2w.echo_time_ms, t2w.field_strength_t, t2w.vendor) == (4500, 100, 1.5, "siemens")
    assert sorted(result.members) == ["json", "t1w_c.b2", "t2w.b2"]
    assert (result.tally.used, result.tally.series, result.tally.volumes, result.tally.members) == (12, 2, 2, 2)


def test_stored_voxels_lie_where_the_dicom_has_them(make_series: MakeSeries, process: Process) -> None:
    """The whole chain at once: header millimetres to stored voxel, for every body voxel of every slice."""
    tilted = ["0.984808", "0.173648", "0", "-0.171010", "0.969846", "0.173648"]
    files = make_series(ImageOrientationPatient=tilted)
    result = process(files, quantisation_bits=16)
    (series,) = meta(result).series
    stored = decode_volume(result.members["t2w.b2"]) * series.intensity_scale + series.intensity_offset
    to_voxel = np.linalg.inv(np.array(series.affine))
    for path in files:
        ds = pydicom.dcmread(path)
        direction = np.array(ds.ImageOrientationPatient, dtype=float)
        for row, column in ((24, 20), (21, 31), (10, 22), (40, 25)):
            place = np.array(ds.ImagePositionPatient, dtype=float)
            place = place + direction[:3] * 2.5 * column + direction[3:] * 2.0 * row
            voxel = apply_affine(to_voxel, place * (-1, -1, 1))
            assert np.abs(voxel - np.rint(voxel)).max() < 0.01
            assert stored[tuple(np.rint(voxel).astype(int))] == pytest.approx(ds.pixel_array[row, column], abs=1)


def test_air_is_zero_and_the_box_and_range_are_the_bodys(make_series: MakeSeries, process: Process) -> None:
    result = process(make_series())
    (series,) = meta(result).series
    stored = decode_volume(result.members["t2w.b2"])
    (d0, h0, w0), (d1, h1, w1) = series.foreground
    outside = np.ones(stored.shape, dtype=bool)
    outside[d0:d1, h0:h1, w0:w1] = False
    assert (stored[outside] == 0).all()
    assert 0.4 < (stored > 0).mean() < 0.65
    assert series.intensity_low < 300 < 850 < series.intensity_high < 910


def test_missing_slices_are_marked_and_empty(make_series: MakeSeries, process: Process) -> None:
    result = process(make_series(volume=head(depth=8), skip=(2, 5)))
    (series,) = meta(result).series
    assert [d for d, valid in enumerate(series.slice_valid) if not valid] == [2, 5]
    assert not decode_volume(result.members["t2w.b2"])[[2, 5]].any()
    assert series.slice_position_mm == pytest.approx([5.0 * d for d in range(8)])
    assert result.tally.invalid_slices == 2


def test_gaps_can_be_quarantined(make_series: MakeSeries, process: Process) -> None:
    result = process(make_series(volume=head(depth=8), skip=(2,)), gaps="quarantine")
    assert result.members == {}
    assert [(e.reason, e.files) for e in result.tally.entries] == [(Reason.MISSING_SLICES, 7)]


@pytest.mark.parametrize("name", ["PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient"])
def test_row_05_a_series_without_geometry_is_quarantined_alone(
    make_series: MakeSeries, process: Process, name: str
) -> None:
    bad = make_series(folder="in/bad", series="bad")
    for path in bad:
        edit(path, **{name: None})
    result = process(make_series() + bad)
    assert [s.name for s in meta(result).series] == ["t2w"]
    assert [(e.reason, e.files) for e in result.tally.entries] == [(Reason.NO_GEOMETRY, 6)]
    assert result.tally.files == 12


def test_row_08_mixed_orientations_become_two_series(make_series: MakeSeries, process: Process) -> None:
    sagittal = make_series(folder="in/s", ImageOrientationPatient=["0", "1", "0", "0", "0", "-1"])
    result = process(make_series() + sagittal)
    assert [s.name for s in meta(result).series] == ["t2w", "t2w_2"]
    assert {s.plane for s in meta(result).series} == {Plane.AXIAL, Plane.SAGITTAL}
    assert result.tally.split_series == 1


LOCALIZER = {
    "axial": ["1", "0", "0", "0", "1", "0"],
    "sagittal": ["0", "1", "0", "0", "0", "-1"],
    "coronal": ["1", "0", "0", "0", "0", "-1"],
}


def test_row_09_a_localizer_is_known_by_its_three_planes(make_series: MakeSeries, process: Process) -> None:
    """No word and no image type names it."""
    files = [
        path
        for plane, direction in LOCALIZER.items()
        for path in make_series(folder=f"in/{plane}", series="scout", ImageOrientationPatient=direction)
    ]
    result = process(make_series() + files)
    assert [s.name for s in meta(result).series] == ["t2w"]
    assert (result.tally.used, dict(result.tally.excluded), result.tally.entries) == (6, {"localizer": 18}, [])


def test_three_long_stacks_or_two_planes_are_no_localizer(make_series: MakeSeries, process: Process) -> None:
    two = [
        p
        for plane in ("axial", "coronal")
        for p in make_series(f"in/{plane}", ImageOrientationPatient=LOCALIZER[plane])
    ]
    assert not process(two).tally.excluded
    long = [
        path
        for plane, direction in LOCALIZER.items()
        for path in make_series(f"long/{plane}", volume=head(depth=24), ImageOrientationPatient=direction)
    ]
    assert not process(long).tally.excluded


def test_the_study_keeps_what_was_recognised_with_its_evidence(make_series: MakeSeries, process: Process) -> None:
    (series,) = meta(process(make_series(ScanOptions=["FS"]))).series
    assert (series.fat_suppression, series.acquisition, series.region) == ("yes", "2d", "head")
    assert set(series.evidence) == {
        "contrast", "agent", "role", "plane", "fat_suppression", "acquisition", "dixon", "region",
    }  # fmt: skip
    assert series.evidence["contrast"].rule == "long te, long tr"
    assert series.evidence["contrast"].confidence == pytest.approx(0.95)


@pytest.mark.parametrize("value", [0, 700])
def test_row_15_a_constant_volume_is_quarantined(make_series: MakeSeries, process: Process, value: int) -> None:
    result = process(make_series(volume=np.full((5, 32, 32), value, dtype=np.uint16)))
    assert [(e.reason, e.files) for e in result.tally.entries] == [(Reason.CONSTANT, 5)]


@pytest.mark.parametrize(
    "changes",
    [
        {"ImageOrientationPatient": ["1", "0", "0", "1", "0", "0"]},
        {"ImageOrientationPatient": ["0", "0", "0", "0", "0", "0"]},
        {"PixelSpacing": ["0", "2"]},
        {"PixelSpacing": ["-1", "2"]},
    ],
)
def test_row_15_a_singular_affine_is_quarantined(
    make_series: MakeSeries, process: Process, changes: dict[str, object]
) -> None:
    result = process(make_series(**changes))
    assert [(e.reason, e.files) for e in result.tally.entries] == [(Reason.NO_GEOMETRY, 6)]


@pytest.mark.parametrize("word", [b"nan ", b"inf ", b"1e999 "])
def test_row_15_an_affine_that_is_not_finite_is_quarantined(
    make_series: MakeSeries, process: Process, word: bytes
) -> None:
    files = make_series(PixelSpacing=["2", "2.125"])
    for path in files:
        path.write_bytes(path.read_bytes().replace(b"2\\2.125 ", b"2\\" + word.ljust(6)))
    result = process(files)
    assert [(e.reason, e.files) for e in result.tally.entries] == [(Reason.NO_GEOMETRY, 6)]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_row_15_not_finite_voxels_are_quarantined(
    make_series: MakeSeries, process: Process, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    def poisoned(volume: object, *rest: object) -> object:
        volume.values[3, 3, 1] = value  # type: ignore[attr-defined]
        return encode_series(volume, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("data_prep.study.encode_series", poisoned)
    result = process(make_series())
    assert [(e.reason, e.files) for e in result.tally.entries] == [(Reason.NOT_FINITE, 6)]


def diffusion(make_series: MakeSeries) -> list[Path]:
    """b = 0 and three directions at b = 1000, as one series."""
    files = []
    for number, b in enumerate((0.0, 1000.0, 1000.0, 1000.0)):
        part = make_series(
            folder=f"in/{number}",
            volume=(head(seed=number) * (0.4 if b else 1.0)).astype(np.uint16),
            ScanningSequence=["EP", "SE"],
            DiffusionBValue=b,
        )
        for k, path in enumerate(part):
            edit(path, InstanceNumber=str(6 * number + k + 1), AcquisitionNumber=str(number + 1))
        files.extend(part)
    return files


def test_row_13_all_volumes_in_order(make_series: MakeSeries, process: Process) -> None:
    result = process(diffusion(make_series), volumes="all")
    names = [(s.name, s.b_value) for s in meta(result).series]
    assert names == [("dwi_b0", 0), ("dwi_b1000", 1000), ("dwi_b1000_2", 1000), ("dwi_b1000_3", 1000)]
    assert (result.tally.volumes, result.tally.members, result.tally.used) == (4, 4, 24)


def test_row_13_b0_and_the_mean_of_each_shell_by_default(make_series: MakeSeries, process: Process) -> None:
    result = process(diffusion(make_series), quantisation_bits=16)
    assert [s.name for s in meta(result).series] == ["dwi_b0", "dwi_b1000"]
    assert (result.tally.volumes, result.tally.members, result.tally.used) == (4, 2, 24)
    series = meta(result).series[1]
    stored = decode_volume(result.members["dwi_b1000.b2"]) * series.intensity_scale + series.intensity_offset
    expected = np.mean([(head(seed=n) * 0.4).astype(np.uint16) for n in (1, 2, 3)], axis=0)
    # H runs from posterior to anterior, so DICOM's rows come reversed; W runs to the right, so columns do too
    body = stored > 0
    assert stored[body] == pytest.approx(expected[:, ::-1, ::-1][body], abs=0.6)


def test_row_13_the_mean_bold_by_default(make_series: MakeSeries, process: Process) -> None:
    files = []
    for number in range(4):
        part = make_series(
            folder=f"in/{number}", volume=head() + np.uint16(8 * number), ScanningSequence=["EP", "GR"], EchoTime="30"
        )
        for k, path in enumerate(part):
            edit(path, InstanceNumber=str(6 * number + k + 1), AcquisitionNumber=str(number + 1))
        files.extend(part)
    result = process(files, quantisation_bits=16)
    (series,) = meta(result).series
    assert (series.name, series.contrast) == ("bold", Contrast.BOLD)
    assert (result.tally.volumes, result.tally.members, result.tally.used) == (4, 1, 24)
    stored = decode_volume(result.members["bold.b2"]) * series.intensity_scale + series.intensity_offset
    body = stored > 100
    assert stored[body] == pytest.approx(head()[:, ::-1, ::-1][body] + 12, abs=0.6)


def test_means_keep_one_volume_of_each_shell() -> None:
    assert mean_volumes([]) == []


REPORT = "FINDINGS: Normal brain of Mrs Okonkwo.\nIMPRESSION: Normal."


def test_the_report_is_stored_clean(make_series: MakeSeries, process: Process) -> None:
    result = process(make_series(), report=REPORT)
    report = meta(result).report
    assert report is not None
    assert report.diagnostic == "Normal brain of Mrs [removed].\nNormal."
    assert result.has_report


@pytest.mark.parametrize(("report", "reason"), [("", Reason.REPORT_EMPTY), ("x" * 30_000, Reason.REPORT_TOO_LONG)])
def test_row_21_a_bad_report_costs_the_text_only(
    make_series: MakeSeries, process: Process, report: str, reason: Reason
) -> None:
    result = process(make_series(), report=report)
    assert meta(result).report is None
    assert [(e.kind, e.reason, e.files) for e in result.tally.entries] == [("report", reason, 0)]
    assert result.tally.used == 6


def test_a_fault_of_ours_costs_one_study_and_quotes_nothing(
    make_series: MakeSeries, process: Process, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("Okonkwo^Adaeze")

    monkeypatch.setattr("data_prep.study.split_series", broken)
    monkeypatch.setitem(process.__globals__, "process_study", guarded_study)  # type: ignore[attr-defined]
    result = process(make_series())
    assert [(e.reason, e.files) for e in result.tally.entries] == [(Reason.INTERNAL, 6)]
    said = capsys.readouterr().err
    assert "KeyError in test_study.py" in said
    assert "Okonkwo" not in said
