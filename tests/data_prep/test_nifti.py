"""NIfTI files and BIDS trees as input; rows 15 and 17 of the fault battery for them."""

from __future__ import annotations

import gzip
import json
import struct
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from data_prep.headers import Header
from data_prep.ledger import QuarantineError, Reason, Rule
from data_prep.nifti import load_nifti, read_nifti_header
from data_prep.prepare import prepare
from data_prep.summary import PrepareSummary
from fm.config.errors import UserError
from fm.config.prepare import Deface, PrepareConfig, Source
from fm.data.codec import decode_volume
from fm.data.index import Manifest
from fm.data.sample import Acquisition, Agent, Contrast, Plane, StudyMeta
from fm.data.verify import verify
from fm.grid import apply_affine

from .conftest import head

AFFINE = np.array([[-2.0, 0, 0, 40], [0, 2.0, 0, -48], [0, 0, 5.0, -15], [0, 0, 0, 1]])


def write(path: Path, values: np.ndarray | None = None, affine: np.ndarray = AFFINE, **header: Any) -> Path:
    """Write (column, row, slice[, volume]) voxels."""
    data = head().transpose(2, 1, 0).astype(np.int16) if values is None else values
    image = nibabel.Nifti1Image(data, affine)
    image.header["descrip"] = b"OKONKWO^ADAEZE"
    for name, value in header.items():
        image.header[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def outcome(path: Path) -> list[Any] | Rule | Reason:
    """Volumes of a file, or why there are none."""
    try:
        found = read_nifti_header(str(path), str(path.parent), Source.nifti_files)
        return load_nifti(found) if isinstance(found, Header) else found
    except QuarantineError as err:
        return err.reason


def run(tree: Path, out: str, **settings: Any) -> PrepareSummary:
    config = PrepareConfig(deface=Deface.none, key_file=str(tree.parent / "key"), **settings)
    return prepare(str(tree), None, None, str(tree.parent / out), config, 1)


def studies(out: Path) -> list[StudyMeta]:
    manifest = Manifest.open(str(out))
    return sorted((manifest.study(key) for key in manifest.keys), key=lambda study: (study.patient, study.key))


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """Two people, one seen twice; sidecars at the root and beside files; things that are no scans."""
    root = tmp_path / "ds"
    write(root / "sub-01" / "ses-1" / "anat" / "sub-01_ses-1_T1w.nii.gz")
    write(root / "sub-01" / "ses-1" / "anat" / "sub-01_ses-1_ce-gadolinium_T1w.nii.gz")
    write(root / "sub-01" / "ses-2" / "anat" / "sub-01_ses-2_FLAIR.nii.gz")
    volumes = np.stack([head(seed=n).transpose(2, 1, 0) // (1 + (n > 0)) for n in range(3)], axis=3).astype(np.int16)
    write(root / "sub-02" / "dwi" / "sub-02_dwi.nii.gz", volumes)
    (root / "sub-02" / "dwi" / "sub-02_dwi.bval").write_text("0 1000 1000\n")
    write(root / "sub-02" / "anat" / "sub-02_acq-x_T2w.nii")
    write(root / "derivatives" / "seg" / "sub-01_T1w.nii.gz")
    (root / "dataset_description.json").write_text('{"Name": "A study", "BIDSVersion": "1.10.0"}')
    (root / "participants.tsv").write_text("participant_id\tage\tsex\nsub-01\t34\tF\nsub-02\t92\tM\n")
    (root / "T1w.json").write_text(
        '{"RepetitionTime": 2.3, "EchoTime": 0.003, "InversionTime": 0.9, "FlipAngle": 9, "MRAcquisitionType": "3D",'
        ' "ScanningSequence": "GR_IR", "MagneticFieldStrength": 3, "Manufacturer": "Siemens"}'
    )
    (root / "sub-01" / "ses-1" / "anat" / "sub-01_ses-1_T1w.json").write_text('{"FlipAngle": 8}')
    (root / "README").write_text("words")
    return root


def test_a_bids_tree_becomes_studies_of_its_people(bids: Path) -> None:
    summary = run(bids, "out")
    assert (summary.files, summary.used, summary.quarantined) == (12, 5, {})
    assert summary.excluded == {"bids_other": 1, "non_dicom": 1, "sidecar": 5}
    assert (summary.studies, summary.patients, summary.volumes, summary.members) == (3, 2, 7, 6)
    assert verify(str(bids.parent / "out")).problems == []
    found = {frozenset(s.name for s in study.series): study for study in studies(bids.parent / "out")}
    anat, flair = found[frozenset({"t1w", "t1w_c"})], found[frozenset({"flair"})]
    other = found[frozenset({"dwi_b0", "dwi_b1000", "t2w"})]
    assert anat.patient == flair.patient != other.patient
    assert (anat.age, anat.sex, other.age, other.sex) == (34, "f", "90+", "m")
    plain, enhanced = sorted(anat.series, key=lambda series: series.name)
    assert (plain.contrast, plain.agent, plain.acquisition) == (Contrast.T1W, Agent.UNKNOWN, Acquisition.THREE_D)
    assert plain.evidence["contrast"].rule == "inversion-prepared gradient echo"
    assert (plain.repetition_time_ms, plain.echo_time_ms, plain.flip_angle_deg) == (2300, 3, 8)
    assert (enhanced.agent, enhanced.flip_angle_deg, enhanced.vendor) == (Agent.YES, 8, "siemens")
    assert plain.plane is Plane.AXIAL


def test_nothing_of_names_and_text_fields_leaves(bids: Path) -> None:
    run(bids, "out")
    manifest = Manifest.open(str(bids.parent / "out"))
    texts = [path.read_bytes() for path in (bids.parent / "out").iterdir()]
    texts += [manifest.read(key, "json") for key in manifest.keys]
    assert not [word for word in (b"OKONKWO", b"sub-0", b"ses-", b"A study") if any(word in text for text in texts)]


def test_voxels_lie_where_the_file_says_whatever_its_axes(tmp_path: Path) -> None:
    """The same picture stored with its slices along the first axis, the second, and the third."""
    data = head().transpose(2, 1, 0).astype(np.int16)
    for number, order in enumerate(((0, 1, 2), (2, 0, 1), (1, 2, 0), (0, 2, 1))):
        write(tmp_path / "in" / f"{number}.nii", data.transpose(order), AFFINE[:, [*order, 3]])
    summary = run(tmp_path / "in", "out", source=Source.nifti_files, quantisation_bits=16)
    assert (summary.studies, summary.patients) == (4, 4)
    manifest = Manifest.open(str(tmp_path / "out"))
    for study in studies(tmp_path / "out"):
        (series,) = study.series
        assert (series.shape, series.spacing_mm, series.plane) == ((6, 48, 40), (5.0, 2.0, 2.0), Plane.AXIAL)
        stored = decode_volume(manifest.read(study.key, f"{series.name}.b2"))
        for voxel in ((30, 21, 2), (12, 25, 4)):
            there = np.rint(apply_affine(np.linalg.inv(series.affine), apply_affine(AFFINE, voxel))).astype(int)
            value = stored[tuple(there)] * series.intensity_scale + series.intensity_offset
            assert value == pytest.approx(data[voxel], abs=0.5)


def test_folders_of_files_are_studies_when_asked(tmp_path: Path) -> None:
    for name in ("p1/T1.nii.gz", "p1/T2.nii.gz", "p2/T1.nii.gz"):
        write(tmp_path / "in" / name)
    assert run(tmp_path / "in", "folders", source=Source.nifti_folders).studies == 2
    assert run(tmp_path / "in", "files", source=Source.nifti_files).studies == 3
    with pytest.raises(UserError, match=r"holds no DICOM.*prepare\.source"):
        run(tmp_path / "in", "dicom")


def test_row_16_the_slope_is_applied_once(tmp_path: Path) -> None:
    (volume,) = outcome(write(tmp_path / "a.nii.gz", scl_slope=1.7, scl_inter=-10))
    raw = np.asarray(nibabel.load(tmp_path / "a.nii.gz").dataobj.get_unscaled())
    assert volume.values == pytest.approx(raw * 1.7 - 10, abs=1e-2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_row_15_voxels_that_are_not_finite_are_quarantined(tmp_path: Path, value: float) -> None:
    data = head().transpose(2, 1, 0).astype(np.float32)
    data[20, 20, 2] = value
    write(tmp_path / "in" / "bad.nii.gz", data)
    write(tmp_path / "in" / "good.nii.gz")
    summary = run(tmp_path / "in", "out", source=Source.nifti_files)
    assert (summary.used, summary.quarantined) == (1, {"not_finite": 1})


def patched(path: Path, offset: int, payload: bytes) -> Path:
    """Overwrite bytes of a plain NIfTI-1 header."""
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(payload)] = payload
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    ("offset", "payload", "reason"),
    [
        (280, struct.pack("<4f", np.nan, 0, 0, 0), Reason.NO_GEOMETRY),
        (296, struct.pack("<4f", np.inf, 0, 0, 0), Reason.NO_GEOMETRY),
        (296, struct.pack("<4f", -2, 0, 0, 0), Reason.NO_GEOMETRY),
        (252, struct.pack("<2h", 0, 0), Reason.NO_GEOMETRY),
        (112, struct.pack("<f", np.inf), Reason.BAD_RESCALE),
        (112, struct.pack("<f", 1e30), Reason.BAD_RESCALE),
        (70, struct.pack("<h", 9999), Reason.BAD_HEADER),
        (344, b"ni1\0", Reason.BAD_HEADER),
        (0, b"\1\2\3\4", Reason.BAD_HEADER),
        (40, struct.pack("<4h", 3, -5, 48, 6), Reason.BAD_HEADER),
        (40, struct.pack("<4h", 3, 400, 480, 6), Reason.TRUNCATED),
        (108, struct.pack("<f", 1e30), Reason.BAD_HEADER),
        (108, struct.pack("<f", np.nan), Reason.BAD_HEADER),
    ],
)
def test_row_15_impossible_headers_are_quarantined(tmp_path: Path, offset: int, payload: bytes, reason: Reason) -> None:
    path = write(tmp_path / "a.nii")
    assert isinstance(outcome(path), list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert outcome(patched(path, offset, payload)) is reason


def test_colour_is_excluded(tmp_path: Path) -> None:
    path = tmp_path / "rgb.nii"
    rgb = np.zeros((8, 8, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(rgb, AFFINE), path)
    assert outcome(path) is Rule.COLOUR


def measured(path: Path) -> tuple[list[Any] | Rule | Reason, int]:
    """What becomes of a file, and the peak of memory in bytes."""
    tracemalloc.start()
    found = outcome(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return found, peak


@pytest.mark.parametrize("shape", [(1290, 1290, 1290), (800, 800, 800), (32767, 32767, 32767)])
def test_row_17_a_small_file_that_claims_gigabytes(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    """19 KB that say 8 GB, 2 GB (within what an image may have) and 140 TB."""
    plain = patched(write(tmp_path / "a.nii"), 40, struct.pack("<4h", 3, *shape))
    patched(plain, 70, struct.pack("<2h", 16, 32))
    packed = tmp_path / "b.nii.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert packed.stat().st_size < 20_000
    for path in (plain, packed):
        found, peak = measured(path)
        assert found is (Reason.TRUNCATED if shape[0] == 800 else Reason.TOO_LARGE)
        assert peak < 2**23


def test_row_17_a_gzip_bomb(tmp_path: Path) -> None:
    """A small picture, then half a gigabyte of zeros: no more is inflated than the header accounts for."""
    plain = write(tmp_path / "a.nii").read_bytes()
    path = tmp_path / "bomb.nii.gz"
    with gzip.open(path, "wb") as file:
        file.write(plain)
        for _ in range(128):
            file.write(bytes(2**22))
    assert path.stat().st_size < 2**20
    found, peak = measured(path)
    assert found is Reason.TOO_LARGE
    assert peak < 2**26


@pytest.mark.parametrize("damage", ["checksum", "cut", "not gzip"])
def test_row_17_damaged_gzip(tmp_path: Path, damage: str) -> None:
    """nibabel overlooks a wrong checksum."""
    path = write(tmp_path / "a.nii.gz")
    raw = bytearray(path.read_bytes())
    if damage == "checksum":
        raw[-8] ^= 1
    elif damage == "cut":
        del raw[len(raw) // 2 :]
    else:
        raw[:2] = b"PK"
    path.write_bytes(raw)
    assert outcome(path) is (Reason.BAD_HEADER if damage == "not gzip" else Reason.TRUNCATED)


def test_a_sidecar_that_is_none_is_no_harm(bids: Path) -> None:
    (bids / "T1w.json").write_text("[" * 100_000)
    (bids / "participants.tsv").write_bytes(b"\xff\xfe\x00")
    summary = run(bids, "out")
    assert summary.used == 5
    assert all(study.age is None for study in studies(bids.parent / "out"))


def test_real_hippocampus_crops(mri_dev: Path, tmp_path: Path) -> None:
    files = sorted((mri_dev / "nifti" / "msd_hippocampus").rglob("*.nii.gz"))
    images = [path for path in files if "label" not in str(path).lower()][:3]
    for path in images:
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
    summary = run(tmp_path / "in", "out", source=Source.nifti_files)
    assert (summary.files, summary.used, summary.studies) == (3, 3, 3)
    shapes = {tuple(sorted(nibabel.load(path).shape)) for path in images}
    assert {tuple(sorted(s.series[0].shape)) for s in studies(tmp_path / "out")} == shapes
    assert json.loads((tmp_path / "out" / "prepare.json").read_bytes())["quarantined"] == {}
