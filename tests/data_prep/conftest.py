from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from scipy.ndimage import zoom

from data_prep.convert import converter
from data_prep.headers import Header, HeaderReader
from data_prep.keys import Keyring
from data_prep.study import StudyJob, StudyResult, process_study
from fm.config.prepare import Deface, PrepareConfig

NICOM = Path(nibabel.__file__).parent / "nicom" / "tests" / "data"
STUDIES = tuple("abcdef")
"""Of the `archive`."""
MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"


def uid(text: str) -> str:
    """The same UID for the same text."""
    return str(generate_uid(entropy_srcs=[text]))


def head(depth: int = 6, rows: int = 48, columns: int = 40, seed: int = 0) -> np.ndarray:
    """(slice, row, column) uint16: a bright ellipsoid with a gradient and a mark, in noise; seeds above 0 have each
    a structure of its own, so that they are no duplicates."""
    rng = np.random.default_rng(seed)
    d, r, c = np.mgrid[-1 : 1 : depth * 1j, -1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    values = np.where(np.hypot(r, c) < 0.8, 500 + 200 * d + 150 * r + 100 * c, 8) + rng.normal(0, 4, d.shape)
    if seed:
        values += (
            (np.hypot(r, c) < 0.8) * 150 * zoom(rng.normal(size=(3, 8, 8)), (depth / 3, rows / 8, columns / 8), order=1)
        )
    values[:, 20:23, 30:33] = 900
    return np.clip(values, 0, 4000).astype(np.uint16)


def slice_header(study: str = "study", series: str = "series", patient: str = "P1234567") -> Dataset:
    """The header that the slices of a T2-weighted series share."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = MR_IMAGE
    ds.Modality = "MR"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid(study), uid(study + series)
    ds.FrameOfReferenceUID = uid(study + "frame")
    ds.PatientID, ds.PatientName = patient, "OKONKWO^ADAEZE"
    ds.PatientBirthDate, ds.PatientSex, ds.PatientAge = "19610304", "F", "059Y"
    ds.StudyDate = ds.SeriesDate = "20200812"
    ds.AccessionNumber = "ACC" + str(sum(study.encode()))
    ds.ReferringPhysicianName, ds.InstitutionName = "THORNTON^RUPERT", "Brookwater General"
    ds.Manufacturer, ds.MagneticFieldStrength = "SIEMENS", "1.5"
    ds.ScanningSequence, ds.SequenceVariant, ds.MRAcquisitionType = "SE", "SK", "2D"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    ds.RepetitionTime, ds.EchoTime, ds.FlipAngle, ds.EchoTrainLength = "4500", "100", "90", "9"
    ds.SeriesDescription, ds.ProtocolName, ds.BodyPartExamined = "t2_tse_tra", "Brain", "HEAD"
    ds.SeriesNumber = "3"
    ds.PixelSpacing, ds.SliceThickness, ds.SpacingBetweenSlices = ["2", "2.5"], "4.5", "5"
    ds.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    return ds


def write_slice(path: Path, shared: Dataset, pixels: np.ndarray, **changes: Any) -> None:
    """Write one file: the shared header, these pixels, and changed elements (None removes one)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = shared.SOPClassUID
    meta.MediaStorageSOPInstanceUID = changes.get("SOPInstanceUID") or uid(str(path))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.update(shared)
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    ds.Rows, ds.Columns = pixels.shape
    ds.PixelData = pixels.astype("<u2").tobytes()
    for name, value in changes.items():
        if value is None:
            del ds[name]
        else:
            setattr(ds, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


MakeSeries = Callable[..., list[Path]]


@pytest.fixture
def make_series(tmp_path: Path) -> MakeSeries:
    """Write a series of axial slices 5 mm apart; returns its files."""

    def make(
        folder: str = "in/a",
        volume: np.ndarray | None = None,
        study: str = "study",
        series: str = "series",
        patient: str = "P1234567",
        skip: Sequence[int] = (),
        **changes: Any,
    ) -> list[Path]:
        shared = slice_header(study, series, patient)
        for name, value in changes.items():
            if value is None:
                del shared[name]
            else:
                setattr(shared, name, value)
        pixels = head() if volume is None else volume
        files = []
        direction = np.array([float(v) for v in shared.get("ImageOrientationPatient", [1, 0, 0, 0, 1, 0])])
        normal = np.cross(direction[:3], direction[3:])
        for k, picture in enumerate(pixels):
            if k in skip:
                continue
            path = tmp_path / folder / f"{k:03d}.dcm"
            at = np.array([-50.0, -60.0, -20.0]) + 5.0 * k * normal
            position = [f"{v:.6g}" for v in at]
            write_slice(path, shared, picture, InstanceNumber=str(k + 1), ImagePositionPatient=position)
            files.append(path)
        return files

    return make


@pytest.fixture
def archive(make_series: MakeSeries, tmp_path: Path) -> Path:
    """Six small studies of five patients under ``in``, with reports and labels beside it."""
    with (
        (tmp_path / "reports.csv").open("w", newline="") as one,
        (tmp_path / "labels.csv").open("w", newline="") as two,
    ):
        reports, labels = csv.writer(one), csv.writer(two)
        reports.writerow(("study_uid", "accession", "patient_id", "text"))
        labels.writerow(("study_uid", "lesion", "lesion_side", "remark"))
        for number, name in enumerate(STUDIES):
            patient = f"P{min(number, 4)}000"
            make_series(folder=f"in/{name}", study=name, patient=patient, volume=head(seed=number))
            reports.writerow((uid(name), "", patient, f"FINDINGS: Lesion {number}, Dr. Thornton.\nIMPRESSION: Seen."))
            labels.writerow((uid(name), number % 2, "left", "free text"))
    return tmp_path


def edit(path: Path, **changes: Any) -> None:
    """Change elements of a written file; None removes one."""
    ds = pydicom.dcmread(path)
    for name, value in changes.items():
        if value is None:
            del ds[name]
        else:
            setattr(ds, name, value)
    ds.save_as(path)


@pytest.fixture(scope="session")
def binary() -> str:
    return converter()


@pytest.fixture
def enhanced_header(tmp_path: Path) -> str:
    """The enhanced MPRAGE that nibabel bundles, unpacked."""
    path = tmp_path / "philips_mprage.dcm"
    path.write_bytes(gzip.decompress((NICOM / "philips_mprage.dcm.gz").read_bytes()))
    return str(path)


@pytest.fixture
def keyring() -> Keyring:
    return Keyring(b"a key for tests, not a secret...")


@pytest.fixture
def read() -> Callable[[Sequence[Path]], list[Header]]:
    """Read headers that must be images."""

    def read_all(paths: Sequence[Path]) -> list[Header]:
        found = [HeaderReader().read(str(path)) for path in paths]
        assert all(isinstance(header, Header) for header in found), found
        return [header for header in found if isinstance(header, Header)]

    return read_all


@pytest.fixture
def process(binary: str, keyring: Keyring, read: Callable[..., list[Header]]) -> Callable[..., StudyResult]:
    """Process files of one study in this process."""

    def run(paths: Sequence[Path], report: str | None = None, **settings: Any) -> StudyResult:
        headers = read(paths)
        job = StudyJob(
            key=keyring.study(headers[0].study_uid),
            patient="p",
            headers=headers,
            report=report,
            report_item="r",
            labels={},
            keyring=keyring,
            config=PrepareConfig(**{"deface": Deface.none, **settings}),
            binary=binary,
        )
        return process_study(job)

    return run
