from __future__ import annotations

import gzip
import struct
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from fm.config.data import DataConfig
from fm.data.codec import encode_volume
from fm.data.sample import Contrast, Plane, Role, SampleError, SeriesMeta
from fm.data.views import Lattice, crop, draw_view, image_of, whole_view
from fm.data.volume import VolumeError, from_sample, read_nifti

LATTICE = Lattice(patch_voxels=(2, 8, 8), spacing_mm=2.0, slice_spacing_mm=4.0, min_tissue=0.05)


def _head() -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Axial RAS+ array (x, y, z) of an ellipsoid with a bright blob on the patient's left, and its affine."""
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(np.arange(48), np.arange(60), np.arange(14), indexing="ij")
    inside = ((x - 24) / 20) ** 2 + ((y - 30) / 26) ** 2 + ((z - 6.5) / 7) ** 2 < 1
    values = np.where(inside, 300 + 40 * rng.standard_normal(inside.shape), 5 * rng.random(inside.shape))
    values[(x - 14) ** 2 + (y - 40) ** 2 + (2 * (z - 8)) ** 2 < 16] = 900
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    affine[:3, 3] = (-50, -60, -30)
    return values.astype(np.float32), affine


def _save(path: Path, values: NDArray[np.float32], affine: NDArray[np.float64]) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def test_geometry_is_that_of_the_file(tmp_path: Path) -> None:
    values, affine = _head()
    image = read_nifti(_save(tmp_path / "scan.nii.gz", values, affine), contrast=Contrast.T2W)
    assert image.plane is Plane.AXIAL and image.contrast is Contrast.T2W
    assert image.spacing_mm == (5.0, 2.0, 2.0) and image.stored.shape == (14, 60, 48)
    # (d, h, w) = (z, y, x): the blob at voxel (14, 40, 8) lies at RAS (−22, 20, 10) mm.
    peak = np.array(np.unravel_index(image.values.argmax(), image.values.shape), dtype=float)
    assert np.abs(image.affine @ [*peak, 1] - [-22, 20, 10, 1]).max() <= 10
    assert (
        np.abs(image.values - np.moveaxis(values, [0, 1, 2], [2, 1, 0]))[image.body].max() < 0.23
    )  # half a step of 12 bits
    start, stop = image.foreground
    assert np.abs(np.array(start) - [0, 4, 4]).max() <= 2 and np.abs(np.array(stop) - [14, 57, 45]).max() <= 2
    assert 0 <= image.low < 200 and 350 < image.high <= 900


def test_the_order_and_direction_of_stored_axes_changes_nothing(tmp_path: Path) -> None:
    values, affine = _head()
    reference = read_nifti(_save(tmp_path / "reference.nii", values, affine))
    expected = whole_view(reference, LATTICE)
    for number, order in enumerate(permutations(range(3))):
        flips = [number >> axis & 1 for axis in range(3)]
        moved = values.transpose(order)
        matrix = affine.copy()
        matrix[:3, :3] = affine[:3, list(order)]
        for axis, flip in enumerate(flips):
            if flip:
                moved = np.flip(moved, axis)
                matrix[:3, 3] += matrix[:3, axis] * (moved.shape[axis] - 1)
                matrix[:3, axis] *= -1
        image = read_nifti(_save(tmp_path / f"{number}.nii", np.ascontiguousarray(moved), matrix))
        assert np.array_equal(image.stored, reference.stored)
        np.testing.assert_allclose(image.affine, reference.affine, atol=1e-4)
        found = whole_view(image, LATTICE)
        assert np.array_equal(found.patches, expected.patches)
        np.testing.assert_allclose(found.position_mm, expected.position_mm, atol=1e-3)


def test_the_bright_blob_is_on_the_patients_left(tmp_path: Path) -> None:
    values, affine = _head()
    found = whole_view(read_nifti(_save(tmp_path / "scan.nii", values, affine)), LATTICE)
    assert found.position_mm[found.patches.max(axis=1).argmax()][0] < -5
    mirrored = whole_view(read_nifti(_save(tmp_path / "other.nii", values[::-1].copy(), affine)), LATTICE)
    assert mirrored.position_mm[mirrored.patches.max(axis=1).argmax()][0] > 5


def test_a_fourth_axis_of_one_is_dropped(tmp_path: Path) -> None:
    values, affine = _head()
    flat = read_nifti(_save(tmp_path / "3d.nii", values, affine))
    assert np.array_equal(read_nifti(_save(tmp_path / "4d.nii", values[..., None], affine)).stored, flat.stored)


def test_bad_files_are_refused_in_one_line(tmp_path: Path) -> None:
    values, affine = _head()
    nan = values.copy()
    nan[20, 20, 5] = np.nan
    cases = {
        "constant": _save(tmp_path / "constant.nii", np.ones_like(values), affine),
        "NaN": _save(tmp_path / "nan.nii", nan, affine),
        "one 3D volume": _save(tmp_path / "bold.nii", np.stack([values, values], axis=-1), affine),
        "no such file": tmp_path / "absent.nii.gz",
    }
    whole = _save(tmp_path / "whole.nii.gz", values, affine).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.nii").write_text("not an image")
    cases["not a readable NIfTI"] = tmp_path / "cut.nii.gz"
    header = bytearray(gzip.decompress(whole)[:352])
    struct.pack_into("<8h", header, 40, 3, 2048, 2048, 1024, 1, 1, 1, 1)
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(bytes(header)))
    flat = bytearray(gzip.decompress(whole))
    struct.pack_into("<2h", flat, 252, 0, 1)  # no qform, sform as scanned
    struct.pack_into("<8f", flat, 280, *struct.unpack_from("<4f", flat, 280) * 2)  # and its first two rows equal
    (tmp_path / "flat.nii").write_bytes(flat)
    cases["singular"] = tmp_path / "flat.nii"
    for reason, path in [*cases.items(), ("not a readable", tmp_path / "text.nii"), ("3D", tmp_path / "bomb.nii.gz")]:
        with pytest.raises(VolumeError, match=reason) as refused:
            read_nifti(path)
        assert "\n" not in str(refused.value) and path.name in str(refused.value)


def _sample() -> tuple[SeriesMeta, bytes]:
    rng = np.random.default_rng(0)
    shape = (12, 70, 66)
    values = np.rint(500 + 100 * rng.standard_normal(shape)).astype(np.float32)
    air = np.ones(shape, dtype=bool)
    air[:, 8:60, 9:61] = False
    encoded = encode_volume(values, air)
    meta = SeriesMeta(
        name="t1w",
        contrast=Contrast.T1W,
        role=Role.ORIGINAL,
        plane=Plane.AXIAL,
        shape=shape,
        spacing_mm=(5.0, 1.5, 1.5),
        affine=[[0, 0, 1.5, -40], [0, 1.5, 0, -50], [5.0, 0, 0, -20], [0, 0, 0, 1]],
        slice_position_mm=[5.0 * i for i in range(12)],
        slice_valid=[i != 4 for i in range(12)],
        frame_of_reference=0,
        foreground=((0, 8, 9), (12, 60, 61)),
        intensity_scale=encoded.scale,
        intensity_offset=encoded.offset,
        intensity_low=250.0,
        intensity_high=750.0,
    )
    return meta, encoded.payload


def test_a_partial_decode_gives_the_same_view_bit_for_bit() -> None:
    meta, payload = _sample()
    whole, part = from_sample(meta, payload), from_sample(meta, payload, meta.foreground)
    assert part.stored.shape == (12, 52, 52) and part.foreground == ((0, 0, 0), (12, 52, 52))
    np.testing.assert_allclose(part.centre_mm, whole.centre_mm)
    a, b = whole_view(whole, LATTICE), whole_view(part, LATTICE)
    assert np.array_equal(a.patches, b.patches)
    np.testing.assert_allclose(a.position_mm, b.position_mm, atol=1e-4)


@pytest.mark.parametrize("spacing", [(5.0, 1.5, 1.5), (1.0, 1.0, 1.0), (2.4, 0.7, 0.9)])
def test_crops_from_partial_decode_are_those_of_the_whole_bit_for_bit(spacing: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(1)
    shape = (44, 150, 140)
    air = np.ones(shape, dtype=bool)
    air[2:-2, 11:-9, 7:-13] = False
    encoded = encode_volume(rng.integers(100, 3000, shape).astype(np.float32), air)
    meta, _ = _sample()
    meta = replace(
        meta,
        shape=shape,
        spacing_mm=spacing,
        affine=(np.diag([*spacing, 1.0])[[2, 1, 0, 3]]).tolist(),
        slice_position_mm=[spacing[0] * i for i in range(44)],
        slice_valid=[i not in (9, 10, 30) for i in range(44)],
        foreground=((2, 11, 7), (42, 141, 127)),
        intensity_high=2900.0,
    )
    data = DataConfig(local_extent=0.3, global_extent=0.6)
    box, decoded = from_sample(meta, encoded.payload, meta.foreground), []
    for number in range(30):
        draw = draw_view(data, rng, local=number % 3 > 0)
        part = image_of(meta, encoded.payload, LATTICE, [draw])
        decoded.append(part.stored.size / box.stored.size)
        want, got = crop(box, LATTICE, draw), crop(part, LATTICE, draw)
        assert np.array_equal(want.patches, got.patches) and np.array_equal(want.position_mm, got.position_mm)
        volume = crop(from_sample(meta, encoded.payload), LATTICE, draw)
        assert np.array_equal(want.patches, volume.patches)
        np.testing.assert_allclose(want.position_mm, volume.position_mm, atol=1e-4)
    assert min(decoded) < 0.1 < max(decoded) < 1.0
    both = image_of(meta, encoded.payload, LATTICE, [draw, draw_view(data, rng, local=False)])
    assert np.array_equal(crop(both, LATTICE, draw).patches, got.patches)


def test_missing_slices_hold_no_body_and_a_contradiction_is_refused() -> None:
    meta, payload = _sample()
    image = from_sample(meta, payload)
    assert not image.body[4].any() and image.body[3].any()
    meta.shape = (12, 70, 65)
    with pytest.raises(SampleError, match=r"t1w: \(12, 70, 66\) voxels where the study says \(12, 70, 65\)"):
        from_sample(meta, payload)
