"""Reading headers: rows 1, 2, 3, 5, 9, 15 and 17 of the fault battery."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import JPEG2000Lossless, RLELossless

from data_prep.headers import Header, HeaderReader
from data_prep.ledger import QuarantineError, Reason, Rule

from .conftest import MakeSeries, edit, slice_header, write_slice


def outcome(path: Path | str) -> Header | Rule | Reason:
    try:
        return HeaderReader().read(str(path))
    except QuarantineError as err:
        return err.reason


def bundled(name: str) -> str:
    return str(get_testdata_file(name))


def test_row_1_truncated_pixels() -> None:
    assert outcome(bundled("MR_truncated.dcm")) is Reason.TRUNCATED


def test_row_2_cut_and_empty_files(make_series: MakeSeries, tmp_path: Path) -> None:
    whole = make_series()[0].read_bytes()
    for length in (0, 1, 60, 131):
        path = tmp_path / f"{length}.dcm"
        path.write_bytes(whole[:length])
        assert outcome(path) is Reason.NOT_DICOM
    for length in (140, 200, 300, 400, 700, 900, len(whole) - 48 * 40 * 2 - 8):
        path = tmp_path / f"{length}.dcm"
        path.write_bytes(whole[:length])
        assert outcome(path) in (Reason.BAD_HEADER, Reason.NO_PIXELS, Reason.NO_UID, Reason.TRUNCATED), length


@pytest.mark.parametrize("lie", [RLELossless, JPEG2000Lossless, "1.2.840.10008.1.2.2", "1.2.3.4"])
def test_row_3_a_transfer_syntax_that_lies(make_series: MakeSeries, lie: str) -> None:
    path = make_series()[0]
    raw = path.read_bytes()
    old, new = b"1.2.840.10008.1.2.1\0", lie.encode()
    at = raw.index(old)
    size = len(new) + len(new) % 2
    group = struct.unpack_from("<I", raw, 140)[0] - len(old) + size
    path.write_bytes(
        raw[:140]
        + struct.pack("<I", group)
        + raw[144 : at - 2]
        + struct.pack("<H", size)
        + new.ljust(size, b"\0")
        + raw[at + 20 :]
    )
    assert outcome(path) in (Reason.TRANSFER_SYNTAX, Reason.BAD_HEADER, Reason.NO_UID)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("SC_rgb_rle.dcm", Rule.SECONDARY_CAPTURE),
        ("SC_rgb_jpeg.dcm", Rule.SECONDARY_CAPTURE),
        ("reportsi.dcm", Rule.STRUCTURED_REPORT),
        ("CT_small.dcm", Rule.OTHER_MODALITY),
        ("README.txt", Rule.NON_DICOM),
    ],
)
def test_row_9_what_is_no_mri_picture(name: str, rule: Rule) -> None:
    assert outcome(bundled(name)) is rule


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, Rule.LOCALIZER),
        ({"SeriesDescription": "3-plane Localizer"}, Rule.LOCALIZER),
        ({"ImageType": ["DERIVED", "SECONDARY", "PROJECTION IMAGE"]}, Rule.PROJECTION),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, Rule.DERIVED_SCREEN),
        ({"BurnedInAnnotation": "YES"}, Rule.BURNED_IN),
        ({"SamplesPerPixel": 3}, Rule.COLOUR),
    ],
)
def test_row_9_rules_by_header(make_series: MakeSeries, changes: dict[str, object], rule: Rule) -> None:
    assert outcome(make_series(**changes)[0]) is rule


@pytest.mark.parametrize(
    "kinds", [["DERIVED", "PRIMARY", "ADC"], ["ORIGINAL", "PRIMARY", "W"], ["DERIVED", "SECONDARY"]]
)
def test_row_9_maps_and_dixon_parts_stay(make_series: MakeSeries, kinds: list[str]) -> None:
    assert isinstance(outcome(make_series(ImageType=kinds)[0]), Header)


@pytest.mark.parametrize("slope", ["0", "1e400", "inf", "nan", "1e30"])
def test_row_15_impossible_slope(make_series: MakeSeries, slope: str) -> None:
    path = make_series(RescaleSlope="1234567")[0]
    path.write_bytes(path.read_bytes().replace(b"1234567 ", slope.ljust(8).encode()))
    assert outcome(path) is Reason.BAD_RESCALE


def test_row_17_a_picture_that_claims_gigabytes(make_series: MakeSeries) -> None:
    path = make_series()[0]
    edit(path, NumberOfFrames="4000000")
    assert outcome(path) is Reason.TOO_LARGE


def test_row_17_a_sequence_nested_5000_deep(tmp_path: Path) -> None:
    shared = slice_header()
    path = tmp_path / "deep.dcm"
    write_slice(path, shared, np.ones((4, 4), dtype=np.uint16))
    whole = path.read_bytes()
    at = whole.index(struct.pack("<HH", 0x0010, 0x0010))
    opening = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    closing = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    path.write_bytes(whole[:at] + opening * 5000 + closing * 5000 + whole[at:])
    assert outcome(path) is Reason.BAD_HEADER


def test_missing_identity_of_an_image(make_series: MakeSeries) -> None:
    for number, name in enumerate(("StudyInstanceUID", "SeriesInstanceUID")):
        assert outcome(make_series(folder=str(number), **{name: None})[0]) is Reason.NO_UID


def test_an_unreadable_file_says_so(tmp_path: Path) -> None:
    assert outcome(tmp_path / "nowhere.dcm") is Reason.UNREADABLE


def test_the_cache_of_a_series_mixes_nothing_up(make_series: MakeSeries) -> None:
    """Slices share converted values only where every shared byte is equal."""
    one, two = make_series(), make_series(folder="in/b", series="other", EchoTime="12", PatientID="Q7")
    reader = HeaderReader()
    found = [reader.read(str(path)) for pair in zip(one, two, strict=True) for path in pair]
    assert [h.scan.echo_time_ms for h in found if isinstance(h, Header)] == [100.0, 12.0] * 6
    assert [h.identity.patient_id for h in found if isinstance(h, Header)] == ["P1234567", "Q7"] * 6
    positions = [h.position for h in found if isinstance(h, Header)]
    assert positions[::2] == [(-50.0, -60.0, -20.0 + 5 * k) for k in range(6)]
    first = found[0]
    assert isinstance(first, Header)
    assert first.instance_uid == str(pydicom.dcmread(one[0]).SOPInstanceUID)
