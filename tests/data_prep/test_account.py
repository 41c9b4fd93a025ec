"""What becomes of every file of real MRI, whole and damaged, and of folders that hold none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pydicom
import pytest

from data_prep.prepare import prepare
from fm.config.errors import UserError
from fm.config.prepare import Deface, PrepareConfig
from fm.data.index import Manifest
from fm.data.verify import verify

from .conftest import edit


def test_nothing_of_241_real_files_is_lost_in_equals_out_excluded_and_quarantined(
    mri_dev: Path, tmp_path: Path
) -> None:
    """Nothing of 241 files is lost; the diffusion series becomes b = 0 and one shell, BOLD its mean."""
    out = str(tmp_path / "out")
    summary = prepare(str(mri_dev / "dicom"), None, None, out, PrepareConfig(deface=Deface.none), 2)
    files = sum(path.is_file() for path in (mri_dev / "dicom").rglob("*"))
    assert (
        (summary.files, summary.used, summary.quarantined, summary.excluded)
        == (files, files, {}, {})
        == (241, 241, {}, {})
    )
    assert (summary.series, summary.volumes, summary.members) == (10, 29, 11)
    assert summary.contrasts == {"bold": 1, "dwi": 2, "flair": 2, "pd": 1, "t1w": 3, "t2w": 2}
    assert (summary.studies, summary.patients) == (5, 5)
    assert verify(out).problems == []
    manifest = Manifest.open(out)
    ages = sorted(str(manifest.study(key).age) for key in manifest.keys)
    assert ages == ["41", "44", "None", "None", "None"]


def test_damaged_real_mri_is_accounted_for(mri_dev: Path, tmp_path: Path) -> None:
    """in = out + excluded + quarantined, file by file, with one fault of every kind among the 241."""
    folder = tmp_path / "in"
    shutil.copytree(mri_dev / "dicom", folder)
    spoil = {name: _by_place(folder / "PGBM-003" / name) for name in ("T2", "T1pre", "FLAIR", "T1post")}
    spoil["T2"][3].write_bytes(spoil["T2"][3].read_bytes()[:5000])
    spoil["T2"][4].write_bytes(b"")
    for path in spoil["T1pre"]:
        edit(path, ImagePositionPatient=None)
    spoil["FLAIR"][9].unlink()
    shutil.copy(spoil["T1post"][2], folder / "again.dcm")
    (folder / "read.me").write_text("x")
    summary = prepare(str(folder), None, None, str(tmp_path / "out"), PrepareConfig(deface=Deface.none), 2)
    assert summary.excluded == {"duplicate": 1, "non_dicom": 1}
    assert summary.quarantined == {"no_geometry": 22, "not_dicom": 1, "truncated": 1}
    assert summary.files == 241 - 1 + 2
    assert summary.used == summary.files - 2 - 24
    assert summary.missing_slices == 3, "two slices of T2 and one of FLAIR"
    lines = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert sum(line["files"] for line in lines) == 24


def _by_place(folder: Path) -> list[Path]:
    """Axial slices from foot to head."""
    return sorted(folder.iterdir(), key=lambda path: float(pydicom.dcmread(path).ImagePositionPatient[2]))


@pytest.mark.parametrize("kind", ["empty", "text", "missing"])
def test_no_dicom_is_one_clear_line(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "in"
    if kind != "missing":
        folder.mkdir()
    if kind == "text":
        (folder / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"is not a folder|holds no DICOM") as caught:
        prepare(str(folder), None, None, str(tmp_path / "out"), PrepareConfig(deface=Deface.none), 1)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
