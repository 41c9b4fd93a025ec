"""World coordinates of known landmarks, from the file through the axes of the contract to a token."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from data_prep.prepare import prepare
from fm.config.prepare import Deface, PrepareConfig
from fm.data.index import Manifest
from fm.data.sample import Plane
from fm.data.views import Lattice, whole_view
from fm.data.volume import SeriesImage, from_sample, read_nifti
from fm.grid import apply_affine

LANDMARK_MM = np.array([23.0, -17.0, 41.0])
LATTICE = Lattice(patch_voxels=(1, 8, 8), spacing_mm=1.0, slice_spacing_mm=1.0, min_tissue=0.05)


def _seen_mm(image: SeriesImage) -> np.ndarray:
    """Where the network is told that the brightest voxel of the whole view lies, RAS+ mm."""
    view = whole_view(image, LATTICE)
    patch, voxel = np.unravel_index(view.patches.argmax(), view.patches.shape)
    within = np.array(np.unravel_index(voxel, LATTICE.patch_voxels)) - (np.array(LATTICE.patch_voxels) - 1) / 2
    return np.asarray(view.position_mm[patch] + within @ view.step_mm + image.centre_mm)


def _turn(degrees: float) -> np.ndarray:
    """About an axis that lies in no plane of the patient."""
    axis = np.array([1.0, 2.0, -1.0]) / np.sqrt(6)
    cross = np.cross(np.eye(3), axis)
    angle = np.radians(degrees)
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


@pytest.mark.parametrize("turned", [0.0, 17.0])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("plane", "columns"),
    [
        (Plane.AXIAL, [[-1.0, 0, 0], [0, -1.0, 0], [0, 0, 5.0]]),
        (Plane.CORONAL, [[-1.0, 0, 0], [0, 0, -1.0], [0, 5.0, 0]]),
        (Plane.SAGITTAL, [[0, -1.0, 0], [0, 0, -1.0], [5.0, 0, 0]]),
    ],
)
def test_a_landmark_keeps_its_place_in_the_patient(
    plane: Plane, columns: list[list[float]], flip: bool, turned: float, tmp_path: Path
) -> None:
    """Drawn phantoms as scanners store them: columns, rows, slices; slices may run either way, and oblique."""
    shape = (90, 96, 22)
    affine = np.eye(4)
    affine[:3, :3] = _turn(turned) @ np.array(columns).T @ np.diag([1, 1, -1 if flip else 1])
    affine[:3, 3] = [8.0, -6.0, 12.0] - affine[:3, :3] @ (np.array(shape) - 1) / 2
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    distance = np.linalg.norm(apply_affine(affine, index) - LANDMARK_MM, axis=-1)
    values = 300 + np.rint(2000 * np.exp(-((distance / 5) ** 2)))
    nibabel.Nifti1Image(values.astype(np.float32), affine).to_filename(tmp_path / "image.nii.gz")
    image = read_nifti(tmp_path / "image.nii.gz")
    assert image.plane is plane and image.spacing_mm == pytest.approx((5.0, 1.0, 1.0))
    brightest = apply_affine(image.affine, np.unravel_index(image.stored.argmax(), image.stored.shape))
    half = np.abs(affine[:3, :3]).sum(axis=1) / 2
    assert (np.abs(brightest - LANDMARK_MM) <= half + 1e-3).all(), "the voxel that holds the landmark"
    assert (np.abs(_seen_mm(image) - brightest) <= half + 0.5).all(), "and the token says the same place"


def test_a_real_shoulder_keeps_its_landmarks(mri_dev: Path, tmp_path: Path) -> None:
    """Hitachi, sagittal and oblique: the brightest pixel of each slice, by its own header, against shard and token."""
    folder = mri_dev / "dicom" / "icometrix-Hitachi"
    prepare(str(folder), None, None, str(tmp_path / "out"), PrepareConfig(deface=Deface.none), 1)
    manifest = Manifest.open(str(tmp_path / "out"))
    meta = manifest.study(manifest.keys[0]).series[0]
    image = from_sample(meta, manifest.read(manifest.keys[0], f"{meta.name}.b2"))
    found = []
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        header = pydicom.dcmread(path)
        pixels = header.pixel_array
        row, column = np.unravel_index(pixels.argmax(), pixels.shape)
        along, down = np.array(header.ImageOrientationPatient, dtype=float).reshape(2, 3)
        spacing = [float(mm) for mm in header.PixelSpacing]
        lps = np.array(header.ImagePositionPatient, dtype=float)
        lps += along * spacing[1] * column + down * spacing[0] * row
        found.append((int(pixels.max()), lps * [-1, -1, 1]))
    assert len(found) == image.stored.shape[0] == 4
    to_voxel = np.linalg.inv(image.affine)
    for value, place in found:
        voxel = apply_affine(to_voxel, place)
        assert np.abs(voxel - np.rint(voxel)).max() < 0.01
        stored = image.values[tuple(np.rint(voxel).astype(int))]
        assert stored == pytest.approx(value, abs=1.0)
    assert max(value for value, _ in found) < image.low + 1.5 * (image.high - image.low), "nothing is clipped"
    place = max(found, key=lambda pair: pair[0])[1]
    assert np.abs(apply_affine(to_voxel, _seen_mm(image)) - apply_affine(to_voxel, place)).max() < 1.0
