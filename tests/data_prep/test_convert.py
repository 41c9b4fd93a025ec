"""Voxels and geometry through dcm2niix: rows 3, 4, 7, 10 to 14, 16 and 17 of the fault battery."""

from __future__ import annotations

import gzip
import resource
import struct
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from data_prep.convert import Volume, convert
from data_prep.headers import Header
from data_prep.ledger import QuarantineError, Reason
from data_prep.prepare import prepare
from fm.config.errors import UserError
from fm.config.prepare import Deface, PrepareConfig
from fm.grid import apply_affine

from .conftest import NICOM, MakeSeries, edit, head, slice_header, write_slice

Read = Callable[[Sequence[Path]], list[Header]]


def ras(position: Sequence[float]) -> np.ndarray:
    return np.array(position, dtype=float) * (-1, -1, 1)


def check_places(volume: Volume, files: Sequence[Path]) -> None:
    """Every slice lies within 0.01 mm of its own header, and holds its own pixels."""
    places = [apply_affine(volume.affine, [0, 0, k]) for k in range(volume.values.shape[2])]
    for path in files:
        ds = pydicom.dcmread(path)
        first = ras(ds.ImagePositionPatient)
        (k,) = [k for k, place in enumerate(places) if np.abs(place - first).max() < 0.01]
        column, row = np.array(ds.ImageOrientationPatient[:3]), np.array(ds.ImageOrientationPatient[3:])
        last = np.array(ds.ImagePositionPatient, dtype=float)
        last = last + column * ds.PixelSpacing[1] * (ds.Columns - 1) + row * ds.PixelSpacing[0] * (ds.Rows - 1)
        corner = apply_affine(volume.affine, [ds.Columns - 1, ds.Rows - 1, k])
        assert np.abs(corner - ras(last)).max() < 0.01
        assert volume.slice_valid[k]
        assert (ds.pixel_array == volume.values[:, :, k].T).all()


@pytest.mark.parametrize(
    "orientation",
    [
        [1, 0, 0, 0, 1, 0],
        [0, 1, 0, 0, 0, -1],
        [1, 0, 0, 0, 0, -1],
        [0.984808, 0.173648, 0, -0.171010, 0.969846, 0.173648],
        [-0.0871557, 0.9961947, 0, 0.0, 0.0, -1.0],
        [0, 1, 0, -1, 0, 0],
    ],
)
def test_row_14_every_slice_lies_where_its_header_says(
    make_series: MakeSeries, read: Read, binary: str, orientation: list[float]
) -> None:
    files = make_series(ImageOrientationPatient=[f"{v:.7g}" for v in orientation])
    (volume,) = convert(read(files), binary, 60)
    assert volume.slice_valid.all()
    check_places(volume, files)


def test_slices_come_in_any_file_order(make_series: MakeSeries, read: Read, binary: str) -> None:
    files = make_series()
    for number, path in enumerate(files):
        path.rename(path.with_name(f"{(7 * number) % 6}x.dcm"))
    moved = sorted(files[0].parent.iterdir())
    (volume,) = convert(read(moved), binary, 60)
    check_places(volume, moved)


@pytest.mark.parametrize("skip", [(3,), (1, 2), (1, 4)])
def test_row_07_missing_slices_stay_on_the_true_grid(
    make_series: MakeSeries, read: Read, binary: str, skip: tuple[int, ...]
) -> None:
    files = make_series(volume=head(depth=9), skip=skip)
    (volume,) = convert(read(files), binary, 60)
    assert volume.values.shape[2] == 9
    assert [k for k in range(9) if not volume.slice_valid[k]] == list(skip)
    assert (volume.values[:, :, list(skip)] == 0).all()
    assert volume.slice_mm == pytest.approx([5.0 * k for k in range(9)])
    check_places(volume, files)


def test_row_07_interpolated_volumes_are_never_read(make_series: MakeSeries, read: Read, binary: str) -> None:
    """Where dcm2niix evens out a gap it writes an ``_Eq`` volume beside the shifted one; neither sets the grid."""
    files = make_series(volume=head(depth=9), skip=(3, 4))
    out = files[0].parent.parent / "out"
    out.mkdir()
    subprocess.run([binary, "-z", "n", "-o", out, files[0].parent], stdout=subprocess.DEVNULL, check=False)
    assert len(list(out.glob("*_Eq*.nii"))) == 1, "the fault that this row is about is there"
    (volume,) = convert(read(files), binary, 60)
    check_places(volume, files)
    assert not volume.values[:, :, 3:5].any()


def test_slices_on_no_grid_are_quarantined(make_series: MakeSeries, read: Read, binary: str) -> None:
    files = make_series()
    edit(files[3], ImagePositionPatient=["-50", "-60", "-3.2"])
    with pytest.raises(QuarantineError) as caught:
        convert(read(files), binary, 60)
    assert caught.value.reason is Reason.IRREGULAR_SLICES


SYNTAXES = (
    "MR_small.dcm",
    "MR_small_RLE.dcm",
    "MR_small_implicit.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "MR_small_padded.dcm",
    "MR_small_expb.dcm",
)


@pytest.mark.parametrize("name", SYNTAXES)
def test_row_04_every_transfer_syntax_gives_the_same_voxels(name: str, read: Read, binary: str) -> None:
    expected = pydicom.dcmread(str(get_testdata_file("MR_small.dcm"))).pixel_array
    (volume,) = convert(read([Path(str(get_testdata_file(name)))]), binary, 60)
    assert (expected == volume.values[:, :, 0].T).all()


@pytest.mark.parametrize(
    ("banner", "words"),
    [
        ("Chris Rorden's dcm2niiX version v1.0 (JP2:OpenJPEG)", "lacks the JPEG 2000 or JPEG-LS codec"),
        ("Chris Rorden's dcm2niiX version v1.0 (JP-LS:CharLS)", "lacks the JPEG 2000 or JPEG-LS codec"),
        (None, "does not start"),
    ],
)
def test_row_03_a_missing_codec_is_named_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, banner: str | None, words: str
) -> None:
    poor = tmp_path / "dcm2niix"
    if banner is not None:
        poor.write_text(f'#!/bin/sh\necho "{banner}"\n')
        poor.chmod(0o755)
    monkeypatch.setattr("dcm2niix.bin", str(poor))
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match=rf"{words}.*pip install dcm2niix"):
        prepare(str(tmp_path / "in"), None, None, str(tmp_path / "out"), PrepareConfig(deface=Deface.none), 1)
    assert not (tmp_path / "out").exists()


def test_row_17_a_picture_that_claims_more_inside_than_outside(tmp_path: Path, read: Read, binary: str) -> None:
    """The JPEG 2000 stream says 60,000 × 60,000 pixels, the header 64 × 64."""
    raw = Path(str(get_testdata_file("MR_small_jp2klossless.dcm"))).read_bytes()
    size = raw.index(b"\xff\x4f\xff\x51") + 8
    path = tmp_path / "large.dcm"
    path.write_bytes(raw[:size] + struct.pack(">II", 60_000, 60_000) + raw[size + 8 :])
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    with pytest.raises(QuarantineError) as caught:
        convert(read([path]), binary, 60)
    assert caught.value.reason in (Reason.CONVERTER_FAILED, Reason.CONVERTER_MISMATCH)
    after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert after == before or after < 2**21, "more than two gigabytes"


def unzipped(name: str, folder: Path) -> Path:
    path = folder / name.removesuffix(".gz")
    path.write_bytes(gzip.decompress((NICOM / name).read_bytes()))
    return path


def test_row_10_enhanced_frames_lie_where_the_functional_groups_say(tmp_path: Path, read: Read, binary: str) -> None:
    path = unzipped("philips_mprage.dcm.gz", tmp_path)
    (volume,) = convert(read([path]), binary, 60)
    assert volume.values.shape == (256, 256, 176)
    groups = pydicom.dcmread(path, stop_before_pixels=True).PerFrameFunctionalGroupsSequence
    places = apply_affine(volume.affine, [[0, 0, k] for k in range(176)])
    for group in groups:
        first = ras(group.PlanePositionSequence[0].ImagePositionPatient)
        assert np.abs(places - first).max(axis=1).min() < 0.01


@pytest.mark.parametrize("coding", ["", "_RLE", "_big_endian", "_jpeg_2k_lossless", "_jpeg_ls_lossless"])
def test_row_11_enhanced_without_functional_groups_is_quarantined(coding: str, read: Read, binary: str) -> None:
    header = read([Path(str(get_testdata_file(f"emri_small{coding}.dcm", download=False)))])
    assert header[0].enhanced
    with pytest.raises(QuarantineError) as caught:
        convert(header, binary, 60)
    assert caught.value.reason is Reason.NO_GEOMETRY


def test_row_11_functional_groups_that_place_some_frames_only(tmp_path: Path, read: Read, binary: str) -> None:
    path = unzipped("philips_mprage.dcm.gz", tmp_path)
    groups = pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
    edit(path, PerFrameFunctionalGroupsSequence=groups[:100])
    with pytest.raises(QuarantineError) as caught:
        convert(read([path]), binary, 60)
    assert caught.value.reason is Reason.NO_GEOMETRY


def mosaic(name: str, folder: Path) -> Path:
    """One of nibabel's mosaics, whose pixels are blank, with 10 + k in tile k."""
    path = unzipped(name, folder)
    pixels = np.zeros((896, 896), dtype="<u2")
    for k in range(48):
        pixels[128 * (k // 7) :, 128 * (k % 7) :][:128, :128] = 10 + k
    edit(path, PixelData=pixels.tobytes())
    return path


def test_row_12_a_mosaic_whose_tags_are_gone_is_never_one_slice(tmp_path: Path, read: Read, binary: str) -> None:
    path = mosaic("siemens_dwi_1000.dcm.gz", tmp_path)
    ds = pydicom.dcmread(path)
    ds.remove_private_tags()
    ds.ImageType = [word for word in ds.ImageType if word != "MOSAIC"]
    ds.save_as(path)
    with pytest.raises(QuarantineError) as caught:
        convert(read([path]), binary, 60)
    assert caught.value.reason is Reason.NO_GEOMETRY


@pytest.mark.parametrize("name", ["siemens_dwi_0.dcm.gz", "siemens_dwi_1000.dcm.gz"])
def test_row_12_a_mosaic_is_a_volume(name: str, tmp_path: Path, read: Read, binary: str) -> None:
    path = mosaic(name, tmp_path)
    (volume,) = convert(read([path]), binary, 60)
    assert volume.values.shape == (128, 128, 48)
    assert sorted(set(volume.values[5, 9])) == [10 + k for k in range(48)]
    assert (volume.values == volume.values[:1, :1]).all()


def test_row_13_repeated_volumes_are_parted_in_order(make_series: MakeSeries, read: Read, binary: str) -> None:
    files = []
    for repeat in range(3):
        pixels = head(seed=repeat) + 100 * repeat
        part = make_series(folder=f"in/{repeat}", volume=pixels.astype(np.uint16))
        for k, path in enumerate(part):
            edit(path, InstanceNumber=str(6 * repeat + k + 1), AcquisitionNumber=str(repeat + 1))
        files.append(part)
    volumes = convert(read([path for part in files for path in part]), binary, 60)
    assert [volume.index for volume in volumes] == [0, 1, 2]
    for volume, part in zip(volumes, files, strict=True):
        check_places(volume, part)


def test_row_16_rescale_slope_is_applied_once(make_series: MakeSeries, read: Read, binary: str) -> None:
    files = make_series(RescaleSlope="1.7", RescaleIntercept="-10")
    (volume,) = convert(read(files), binary, 60)
    stored = pydicom.dcmread(files[2]).pixel_array
    assert pytest.approx(stored * 1.7 - 10, abs=1e-2) == volume.values[:, :, 2].T


def test_row_16_decimal_rescale(tmp_path: Path, read: Read, binary: str) -> None:
    """nibabel's file, made whole: its slope is a decimal string with spaces."""
    source = pydicom.dcmread(NICOM / "decimal_rescale.dcm")
    slope = [float(e.value) for e in source.iterall() if e.keyword == "RescaleSlope"]
    shared = slice_header()
    shared.RescaleSlope, shared.RescaleIntercept = str(slope[0] if slope else 0.25), "0"
    for k, picture in enumerate(head()):
        position = ["0", "0", str(5 * k)]
        write_slice(tmp_path / f"{k}.dcm", shared, picture, InstanceNumber=str(k), ImagePositionPatient=position)
    (volume,) = convert(read(sorted(tmp_path.glob("*.dcm"))), binary, 60)
    assert pytest.approx(head()[1] * float(shared.RescaleSlope), rel=1e-5) == volume.values[:, :, 1].T


def test_a_slow_conversion_is_ended(make_series: MakeSeries, read: Read, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o755)
    with pytest.raises(QuarantineError) as caught:
        convert(read(make_series()), str(slow), 0.2)
    assert caught.value.reason is Reason.CONVERTER_TIMEOUT


@pytest.mark.parametrize(
    ("folder", "volumes", "shape"),
    [
        ("PGBM-003/T1post", 1, (280, 320, 22)),
        ("PGBM-006/T2", 1, (512, 512, 24)),
        ("NIH-GE-MR750/EPI_BOLD", 4, (64, 64, 15)),
        ("icometrix-Hitachi/shoulder_PD", 1, (64, 64, 4)),
        ("UIH-uMR770/DWI", 17, (64, 64, 20)),
    ],
)
def test_real_series(
    mri_dev: Path, read: Read, binary: str, folder: str, volumes: int, shape: tuple[int, int, int]
) -> None:
    files = sorted(path for path in (mri_dev / "dicom" / folder).iterdir())
    found = convert(read(files), binary, 60)
    assert [volume.values.shape for volume in found] == [shape] * volumes
    assert all(volume.slice_valid.all() for volume in found)


def sform_corners(binary: str, source: Path, out: Path) -> list[np.ndarray]:
    """(8, 3) RAS+ corners of each volume that dcm2niix alone makes of a folder."""
    out.mkdir()
    subprocess.run([binary, "-z", "n", "-m", "y", "-o", out, source], stdout=subprocess.DEVNULL, check=True)
    return [corners(image.shape[:3], image.get_sform()) for image in map(nibabel.load, sorted(out.glob("*.nii")))]


def corners(shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    ends = np.array(np.meshgrid(*((0, size - 1) for size in shape), indexing="ij")).reshape(3, -1).T
    found: np.ndarray = apply_affine(affine, ends)
    return found[np.lexsort(np.round(found, 2).T)]


DEVELOPMENT = (
    "PGBM-003/FLAIR", "PGBM-003/T1post", "PGBM-003/T1pre", "PGBM-003/T2", "PGBM-006/FLAIR", "PGBM-006/T1post",
    "PGBM-006/T2", "NIH-GE-MR750/EPI_BOLD", "icometrix-Hitachi/shoulder_PD", "UIH-uMR770/DWI",
)  # fmt: skip


@pytest.mark.parametrize("folder", DEVELOPMENT)
def test_row_14_real_slices_lie_where_their_headers_and_dcm2niix_say(
    mri_dev: Path, read: Read, binary: str, folder: str, tmp_path: Path
) -> None:
    """Within 0.01 mm of each slice's own position and orientation, and 1e-3 mm of dcm2niix's sform."""
    source = mri_dev / "dicom" / folder
    files = sorted(source.iterdir())
    volumes = convert(read(files), binary, 60)
    (theirs,) = sform_corners(binary, source, tmp_path / "out")
    for volume in volumes:
        assert np.abs(corners(volume.values.shape, volume.affine) - theirs).max() < 1e-3
        assert volume.slice_valid.all()
    if folder.startswith("UIH"):
        assert "ImagePositionPatient" not in pydicom.dcmread(files[0], stop_before_pixels=True)
        return
    # a series of several volumes repeats every place: each volume must hold its own share of the files, in order
    by_volume: list[list[Path]] = [[] for _ in volumes]
    seen: Counter[tuple[float, ...]] = Counter()
    for path in sorted(files, key=lambda p: int(pydicom.dcmread(p, stop_before_pixels=True).InstanceNumber)):
        place = tuple(pydicom.dcmread(path, stop_before_pixels=True).ImagePositionPatient)
        by_volume[seen[place]].append(path)
        seen[place] += 1
    for volume, part in zip(volumes, by_volume, strict=True):
        assert len(part) == volume.values.shape[2]
        check_places(volume, part)


def test_row_12_united_imaging_grids_tell_their_b_values(mri_dev: Path, read: Read, binary: str) -> None:
    files = sorted((mri_dev / "dicom" / "UIH-uMR770" / "DWI").iterdir())
    b_values = [volume.b_value for volume in convert(read(files), binary, 60)]
    assert b_values[0] == pytest.approx(1.25, abs=0.01)
    assert b_values[1:] == pytest.approx([929.75] * 16, abs=0.01)
