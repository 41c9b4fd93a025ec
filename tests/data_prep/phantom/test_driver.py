from __future__ import annotations

import csv
import hashlib
import os
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import dcm2niix
import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image

from data_prep.phantom import PhantomError, simulate
from data_prep.phantom.plan import plan_population
from data_prep.phantom.signal import Weighting
from data_prep.phantom.sites import SITES
from data_prep.phantom.study import Atlases, build_atlases, make_study
from data_prep.phantom.volume import MASK_LABELS
from fm.config.phantom import PhantomConfig, Resolution

STUDIES = 7


def digests(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def convert(folder: Path) -> tuple[list[nib.Nifti1Image], list[str]]:
    with tempfile.TemporaryDirectory() as out:
        subprocess.run(
            [dcm2niix.bin, "-o", out, "-f", "x", "-b", "n", "-z", "n", str(folder)], check=True, capture_output=True
        )
        images = [nib.load(p) for p in sorted(Path(out).glob("*.nii"))]
        values = [(np.asarray(i.dataobj), i.affine) for i in images]
        b_values = [w for p in Path(out).glob("*.bval") for w in p.read_text().split()]
    return values, b_values


def test_same_bytes_whatever_the_workers_and_after_a_stop(
    phantom: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, made = tmp_path / "two", []

    def stopping(plan: Any, *rest: Any) -> Any:
        if len(made) == 3:
            # What a kill leaves behind: a study without its record.
            half = out / phantom.truths[plan.index]["folder"]
            half.mkdir(parents=True)
            (half / "half.dcm").write_bytes(b"?")
            raise KeyboardInterrupt
        made.append(plan.index)
        return make_study(plan, *rest)

    monkeypatch.setattr("data_prep.phantom.driver.make_study", stopping)
    with pytest.raises(KeyboardInterrupt):
        simulate(out, STUDIES, 7, phantom.config, workers=1)
    assert not (out / "labels.csv").exists()
    monkeypatch.setattr("data_prep.phantom.driver.make_study", make_study)
    simulate(out, STUDIES, 7, phantom.config, workers=1)
    assert digests(out) == digests(phantom.out)


def test_a_finished_phantom_is_left_alone_and_another_is_refused(phantom: Any) -> None:
    before = (phantom.out / "phantom.json").stat().st_mtime_ns
    summary = simulate(phantom.out, STUDIES, 7, phantom.config, workers=1)
    assert summary.studies == STUDIES
    assert summary.files == sum(len(files) for _, _, files in os.walk(phantom.out / "dicom"))
    assert (phantom.out / "phantom.json").stat().st_mtime_ns == before
    with pytest.raises(PhantomError, match="another phantom") as caught:
        simulate(phantom.out, STUDIES + 1, 7, phantom.config, workers=1)
    assert "\n" not in str(caught.value)


def test_a_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(PhantomError, match="not an empty folder"):
        simulate(tmp_path, 2, 0, PhantomConfig(), workers=1)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("data_prep.phantom.driver.plan_population", full)
    with pytest.raises(PhantomError, match=r"disk is full.*run again") as caught:
        simulate(tmp_path / "new", 2, 0, PhantomConfig(), workers=1)
    assert "\n" not in str(caught.value)


def test_labels_and_reports_have_their_columns(phantom: Any) -> None:
    labels, reports = table(phantom.out / "labels.csv"), table(phantom.out / "reports.csv")
    assert list(labels[0]) == [
        "study_uid", "accession", "patient_id", "lesion", "lesion_kind", "lesion_side", "lesion_site", "lesion_grade",
        "lesion_size_mm", "lesion_voxels", "lesion_cnr", "atrophy", "atrophy_grade", "sinus", "findings",
    ]  # fmt: skip
    assert list(reports[0]) == ["study_uid", "accession", "patient_id", "text"]
    assert (
        [r["study_uid"] for r in labels]
        == [r["study_uid"] for r in reports]
        == [t["study_uid"] for t in phantom.truths]
    )
    for row, truth in zip(labels, phantom.truths, strict=True):
        assert (row["atrophy"] == "") == (row["sinus"] == "") == (truth["region"] == "ABDOMEN")
        assert row["findings"].startswith(f"{row['lesion_kind']}.{row['lesion_side']}.{row['lesion_site']}")
        assert (row["lesion_cnr"] == "") == (row["lesion"] == "0")


def test_headers_tell_the_truth(phantom: Any) -> None:
    issuers = set()
    for truth in phantom.truths:
        for series in truth["series"]:
            files = sorted((phantom.out / series["folder"]).iterdir())
            assert len(files) == series["files"]
            ds = pydicom.dcmread(files[0])
            assert (ds.PatientID, str(ds.PatientName), ds.PatientSex) == (
                truth["patient_id"], truth["patient_name"], truth["sex"],
            )  # fmt: skip
            issuers.add(str(ds.IssuerOfPatientID))
            assert ds.PatientAge == f"{truth['age_years']:03d}Y"
            assert (ds.StudyInstanceUID, ds.SeriesInstanceUID) == (truth["study_uid"], series["series_uid"])
            assert (ds.Manufacturer, float(ds.MagneticFieldStrength)) == (truth["vendor"], truth["field_t"])
            assert ds.BodyPartExamined == truth["region"]
            timing = series["sequence"]
            assert float(ds.RepetitionTime) == timing["repetition_ms"] and float(ds.EchoTime) == timing["echo_ms"]
            assert (ds.get("InversionTime") is None) == (timing["inversion_ms"] is None)
            assert ("ContrastBolusAgent" in ds) == (series["contrast"] == "T1w+c")
            assert ds.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    # A person who comes again to another hospital keeps the number, and has to stay one person.
    assert len({truth["site"] for truth in phantom.truths}) > 1 and len(issuers) == 1


def test_lesions_are_on_their_side_and_large_enough(phantom: Any) -> None:
    """From the files alone: ImagePositionPatient and the mask, in DICOM's patient coordinates (x to the left)."""
    checked = 0
    for truth in (t for t in phantom.truths if t["lesion"]):
        for series in truth["series"]:
            mask = nib.load(phantom.out / "masks" / truth["study_uid"] / f"{series['series_uid']}.nii.gz")
            lesion = np.asarray(mask.dataobj) == MASK_LABELS["lesion"]
            x_ras = (mask.affine @ np.append(np.argwhere(lesion).mean(axis=0), 1))[0]
            assert (x_ras < -4) if truth["lesion"]["side"] == "left" else (x_ras > 4)
            assert series["lesion_centroid_lps_mm"][0] == pytest.approx(-x_ras, abs=3)
            blocks = 0
            for k in range(lesion.shape[2]):
                plane = lesion[:, :, k]
                runs = np.lib.stride_tricks.sliding_window_view(plane, (3, 3)).all(axis=(2, 3))
                blocks += bool(runs.any())
            assert blocks >= 2 and series["lesion_slices"] >= 2
            assert series["voxels"]["lesion"] == series["lesion_voxels"] > 17
            checked += 1
    assert checked > 8


def test_easy_lesions_are_conspicuous(phantom: Any) -> None:
    easy = [row for row in table(phantom.out / "labels.csv") if row["lesion_grade"] == "easy"]
    assert easy
    assert min(float(row["lesion_cnr"]) for row in easy) > 4


def test_dcm2niix_agrees_with_affine_and_masks(phantom: Any) -> None:
    for truth in phantom.truths:
        for series in truth["series"]:
            if series["dropped_slices"]:
                continue
            ((voxels, affine),), _ = convert(phantom.out / series["folder"])
            mask = nib.load(phantom.out / "masks" / truth["study_uid"] / f"{series['series_uid']}.nii.gz")
            assert voxels.shape[:3] == mask.shape
            assert np.allclose(affine, mask.affine, atol=1e-3)
            # The whole volume, as a set of corners, is where the truth says.
            lps = np.array(series["affine_lps"])
            corners = np.array(
                [
                    [c * (n - 1) for c, n in zip(bits, series["shape_columns_rows_slices"], strict=True)]
                    for bits in np.ndindex(2, 2, 2)
                ]
            )
            wanted = {tuple(np.round((np.diag([-1, -1, 1, 1]) @ lps @ np.append(c, 1))[:3], 2) + 0.0) for c in corners}
            ends = np.array(
                [[c * (n - 1) for c, n in zip(bits, voxels.shape, strict=False)] for bits in np.ndindex(2, 2, 2)]
            )
            found = [(affine @ np.append(c, 1))[:3] for c in ends]
            for corner in found:
                assert min(np.abs(np.array(w) - corner).max() for w in wanted) < 0.02


def test_missing_slices_are_gaps_of_the_true_grid(phantom: Any) -> None:
    gaps = [(t, s) for t in phantom.truths for s in t["series"] if s["dropped_slices"]]
    assert gaps
    for _, series in gaps:
        datasets = [pydicom.dcmread(p, stop_before_pixels=True) for p in (phantom.out / series["folder"]).iterdir()]
        depth = sorted(
            float(
                np.dot(d.ImagePositionPatient, np.cross(d.ImageOrientationPatient[:3], d.ImageOrientationPatient[3:]))
            )
            for d in datasets
        )
        steps = np.diff(depth)
        assert np.isclose(steps, 2 * series["spacing_mm"][2], atol=1e-3).sum() == 1
        assert np.isclose(steps, series["spacing_mm"][2], atol=1e-3).sum() == len(steps) - 1


def test_every_vendor_and_plane_converts(atlases: Atlases, tmp_path: Path) -> None:
    protocol = (Weighting.T1W, Weighting.DWI, Weighting.ADC)
    config = PhantomConfig(missing_series_share=0.0, missing_slice_share=0.0)
    heads = [p for p in plan_population(60, 5, config) if p.patient.head and len(p.series) >= 3 and not p.visit]
    for k, plan in enumerate(heads[: len(SITES)]):
        plane = ("axial", "sagittal", "coronal")[k % 3]
        series = tuple(
            replace(s, weighting=w, plane=plane if w is Weighting.T1W else "axial", drop_slice=False)
            for s, w in zip(plan.series, protocol, strict=False)
        )
        truth = make_study(replace(plan, site=k, protocol=protocol, series=series), atlases, tmp_path, 5, config)[
            "truth"
        ]
        for record in truth["series"]:
            ((voxels, affine),), b_values = convert(tmp_path / record["folder"])
            mask = nib.load(tmp_path / "masks" / truth["study_uid"] / f"{record['series_uid']}.nii.gz")
            assert np.allclose(affine, mask.affine, atol=1e-3), (SITES[k].vendor, record["contrast"], record["plane"])
            assert voxels.shape == (*mask.shape, 2) if record["contrast"] == "DWI" else voxels.shape == mask.shape
            assert b_values == (["0", "1000"] if record["contrast"] == "DWI" else [])
            labels = np.asarray(mask.dataobj)
            if record["contrast"] == "ADC":
                white = np.median(voxels[labels == MASK_LABELS["white_matter"]])
                fluid = np.median(voxels[labels == MASK_LABELS["ventricle"]])
                assert white == pytest.approx(780, abs=120) and fluid > 1.6 * white
            if record["contrast"] == "DWI":
                fluid = voxels[labels == MASK_LABELS["ventricle"]].mean(axis=0)
                assert fluid[0] > 3 * fluid[1]


def test_the_sheet_shows_pictures(phantom: Any) -> None:
    pixels = np.asarray(Image.open(phantom.out / "sheet.png").convert("L"))
    assert min(pixels.shape) > 400
    assert (pixels > 60).mean() > 0.05
    assert len(np.unique(pixels)) > 100


def test_noise_and_receive_field_can_be_switched_off(atlases: Atlases, tmp_path: Path) -> None:
    config = PhantomConfig(noise_scale=0.0, bias_scale=0.0, motion_share=0.0, lesion_prevalence=0.0, nonaxial_share=0.0)
    plan = next(p for p in plan_population(40, 1, config) if p.patient.head and p.series[0].weighting is Weighting.T2W)
    record = make_study(plan, atlases, tmp_path, 1, config)
    series = record["truth"]["series"][0]
    assert series["noise_sd"] == 0 and record["labels"]["lesion_cnr"] == ""
    ((voxels, _),), _ = convert(tmp_path / series["folder"])
    mask = np.asarray(nib.load(tmp_path / "masks" / plan.study_uid / f"{series['series_uid']}.nii.gz").dataobj)
    means = [voxels[mask == MASK_LABELS[name]].mean() for name in ("white_matter", "grey_matter", "ventricle")]
    assert means[0] < means[1] < means[2]
    assert voxels[0, 0, 0] == 0


@pytest.mark.full
def test_full_resolution(tmp_path: Path) -> None:
    config = PhantomConfig(
        resolution=Resolution.full, head_share=1.0, lesion_prevalence=1.0, missing_slice_share=0.0, repeat_share=0.0
    )
    plan = next(p for p in plan_population(60, 0, config) if SITES[p.site].code == "BROW")
    plan = replace(plan, series=plan.series[:1])
    truth = make_study(plan, build_atlases(Resolution.full, head=True, abdomen=False), tmp_path, 0, config)["truth"]
    (series,) = truth["series"]
    ((voxels, affine),), _ = convert(tmp_path / series["folder"])
    mask = nib.load(tmp_path / "masks" / truth["study_uid"] / f"{series['series_uid']}.nii.gz")
    assert voxels.shape == mask.shape and np.allclose(affine, mask.affine, atol=1e-3)
    assert nib.affines.voxel_sizes(affine) == pytest.approx([0.5, 0.5, 6.0], abs=1e-3)
    brain = np.isin(np.asarray(mask.dataobj), [MASK_LABELS["white_matter"], MASK_LABELS["grey_matter"]])
    assert 900 < brain.sum() * 0.5 * 0.5 * 6 / 1000 < 2300
    assert series["lesion_voxels"] > 0
