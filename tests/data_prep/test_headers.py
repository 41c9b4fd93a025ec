"""Reading headers: rows 1, 2, 3, 9, 15, 17 and 18 of the fault battery."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

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


def test_row_01_truncated_pixels() -> None:
    assert outcome(bundled("MR_truncated.dcm")) is Reason.TRUNCATED


def test_row_02_cut_and_empty_files(make_series: MakeSeries, tmp_path: Path) -> None:
    whole = make_series()[0].read_bytes()
    for length in (0, 1, 60, 131):
        path = tmp_path / f"{length}.dcm"
        path.write_bytes(whole[:length])
        assert outcome(path) is Reason.NOT_DICOM
    for length in (140, 200, 300, 400, 700, 900, len(whole) - 48 * 40 * 2 - 8):
        path = tmp_path / f"{length}.dcm"
        path.write_bytes(whole[:length])
        assert outcome(path) in (Reason.BAD_HEADER, Reason.NO_PIXELS, Reason.NO_UID, Reason.TRUNCATED), length


def relabelled(source: Path, target: Path, syntax: str) -> Path:
    """Copy a file under another transfer syntax; nothing else changes."""
    raw = source.read_bytes()
    length_at, syntax_at = raw.index(b"\x02\0\0\0UL") + 8, raw.index(b"\x02\0\x10\0UI") + 6
    (old,) = struct.unpack_from("<H", raw, syntax_at)
    new = syntax.encode() + b"\0" * (len(syntax) % 2)
    group = struct.unpack_from("<I", raw, length_at)[0] - old + len(new)
    head = raw[:length_at] + struct.pack("<I", group) + raw[length_at + 4 : syntax_at]
    target.write_bytes(head + struct.pack("<H", len(new)) + new + raw[syntax_at + 2 + old :])
    return target


ENCODED = ("MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm")
LIES = (
    ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless,
    JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1, JPEGBaseline8Bit, "1.2.3.4",
)  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("name", ENCODED)
def test_row_03_a_transfer_syntax_that_lies(name: str, lie: str, tmp_path: Path) -> None:
    source = Path(bundled(name))
    told = relabelled(source, tmp_path / "lie.dcm", lie)
    if pydicom.dcmread(source, stop_before_pixels=True).file_meta.TransferSyntaxUID == lie:
        assert told.read_bytes() == source.read_bytes()
        assert isinstance(outcome(told), Header)
    elif lie in (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian):
        assert outcome(told) in (Reason.BAD_HEADER, Reason.NO_UID)
    else:
        assert outcome(told) is Reason.TRANSFER_SYNTAX


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("SC_rgb_rle.dcm", Rule.SECONDARY_CAPTURE),
        ("SC_rgb_jpeg.dcm", Rule.SECONDARY_CAPTURE),
        ("SC_rgb_small_odd.dcm", Rule.SECONDARY_CAPTURE),
        ("SC_ybr_full_422_uncompressed.dcm", Rule.SECONDARY_CAPTURE),
        ("reportsi.dcm", Rule.STRUCTURED_REPORT),
        ("CT_small.dcm", Rule.OTHER_MODALITY),
        ("README.txt", Rule.NON_DICOM),
    ],
)
def test_row_09_what_is_no_mri_picture(name: str, rule: Rule) -> None:
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
def test_row_09_rules_by_header(make_series: MakeSeries, changes: dict[str, object], rule: Rule) -> None:
    assert outcome(make_series(**changes)[0]) is rule


@pytest.mark.parametrize(
    "kinds", [["DERIVED", "PRIMARY", "ADC"], ["ORIGINAL", "PRIMARY", "W"], ["DERIVED", "SECONDARY"]]
)
def test_row_09_maps_and_dixon_parts_stay(make_series: MakeSeries, kinds: list[str]) -> None:
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


def test_row_17_a_deflated_file_that_grows_without_end(tmp_path: Path) -> None:
    """A few hundred kilobytes that inflate to a gigabyte; counted in pieces, never held."""
    path = tmp_path / "bomb.dcm"
    plain = Path(bundled("image_dfl.dcm")).read_bytes()
    start = 144 + struct.unpack_from("<I", plain, 140)[0]
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = bytes(2**24)
    path.write_bytes(plain[:start] + b"".join(squeeze.compress(zeros) for _ in range(64)) + squeeze.flush())
    assert path.stat().st_size < 2**21
    tracemalloc.start()
    assert outcome(path) is Reason.TOO_LARGE
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 2**20
    assert outcome(bundled("image_dfl.dcm")) is Rule.SECONDARY_CAPTURE


def test_missing_identity_of_an_image(make_series: MakeSeries) -> None:
    for number, name in enumerate(("StudyInstanceUID", "SeriesInstanceUID")):
        assert outcome(make_series(folder=str(number), **{name: None})[0]) is Reason.NO_UID


def test_row_18_an_unreadable_file_says_so(tmp_path: Path) -> None:
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
