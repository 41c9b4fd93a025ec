"""Segmentations on the grid of their series, read back through fm.data beside the voxels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from data_prep.keys import Keyring
from data_prep.ledger import QuarantineError, Reason
from data_prep.masks import Mask, find_masks, onto_grid, read_mask
from data_prep.phantom import simulate
from data_prep.prepare import prepare
from data_prep.summary import PrepareSummary
from fm.config.errors import ConfigError
from fm.config.phantom import PhantomConfig
from fm.config.prepare import Deface, PrepareConfig, Source
from fm.data.index import Manifest
from fm.data.sample import SeriesMeta
from fm.data.verify import verify
from fm.data.volume import from_sample, mask_from_sample

from .conftest import MakeSeries, uid

NAMES = {"1": "lesion", "2": "oedema", "tumour": "lesion"}
LPS = np.array([-1.0, -1.0, 1.0])


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two heads with lesions, one series in a plane of its own, slices missing."""
    out = tmp_path_factory.mktemp("phantom") / "one"
    config = PhantomConfig(head_share=1.0, lesion_prevalence=1.0, missing_slice_share=0.4, nonaxial_share=0.5)
    simulate(out, 2, 3, config, 1)
    return out


def truths(phantom: Path) -> list[dict[str, Any]]:
    """Series with their lesion's centroid."""
    lines = (phantom / "truth.jsonl").read_text("utf-8").splitlines()
    return [series for line in lines for series in json.loads(line)["series"]]


def run(phantom: Path, masks: Path, out: Path, **settings: Any) -> PrepareSummary:
    config = PrepareConfig(
        key_file=str(out.parent / "key"), masks=str(masks), deface=Deface.none, mask_names=NAMES, **settings
    )
    return prepare(str(phantom / "dicom"), None, None, str(out), config, 1)


def lesions(out: Path, value: int = 1) -> dict[tuple[float, ...], tuple[np.ndarray, SeriesMeta]]:
    """Centroid (LPS mm) of a mask's value in every series, through fm.data; by the first row of the affine."""
    manifest, found = Manifest.open(str(out)), {}
    for key in manifest.keys:
        for series in manifest.study(key).series:
            if not series.mask_names:
                continue
            image = from_sample(series, manifest.read(key, f"{series.name}.b2"))
            mask = mask_from_sample(series, manifest.read(key, f"{series.name}.seg.b2"))
            assert mask.shape == image.stored.shape
            where = np.argwhere(mask == value)
            assert len(where), series.name
            box = ((1, 2, 3), (image.stored.shape[0], image.stored.shape[1] - 1, image.stored.shape[2] - 2))
            part = mask_from_sample(series, manifest.read(key, f"{series.name}.seg.b2"), box)
            assert np.array_equal(part, mask[1:, 2:-1, 3:-2])
            centre = image.affine[:3, :3] @ where.mean(axis=0) + image.affine[:3, 3]
            found[tuple(np.round(centre * LPS, 1))] = (centre * LPS, series)
    return found


def check(phantom: Path, out: Path, series_count: int) -> None:
    """Every lesion lies where the truth says, to the rounding of the truth."""
    found = lesions(out)
    wanted = [np.array(s["lesion_centroid_lps_mm"]) for s in truths(phantom)][:series_count]
    assert verify(str(out)).problems == []
    for centre in wanted:
        nearest = min(np.abs(place - centre).max() for place, _ in found.values())
        assert nearest < 0.02, (centre, nearest)


def test_nifti_masks_lie_on_their_series(phantom: Path, tmp_path: Path) -> None:
    summary = run(phantom, phantom / "masks", tmp_path / "out")
    assert (summary.masks, summary.refused_masks) == (summary.members, {})
    check(phantom, tmp_path / "out", len(truths(phantom)))
    names = [series.mask_names for _, series in lesions(tmp_path / "out").values()]
    assert all(n["1"] == "lesion" and n["4"] == "label_4" for n in names)
    assert {n["2"] for n in names if "2" in n} <= {"oedema"}
    assert not any(series.mask_resampled for _, series in lesions(tmp_path / "out").values())


def turned(mask: Path, target: Path, flips: tuple[int, ...], order: tuple[int, ...]) -> None:
    """Write a mask with its axes flipped and in another order; every voxel stays where it is in the patient."""
    image: Any = nibabel.load(mask)
    data, affine = np.asarray(image.dataobj), image.affine.copy()
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (data.shape[axis] - 1)
        affine[:3, axis] *= -1
        data = np.flip(data, axis)
    target.parent.mkdir(parents=True, exist_ok=True)
    turn = [*order, 3]
    nibabel.save(nibabel.Nifti1Image(data.transpose(order), affine[:, turn]), target)


def as_seg(phantom: Path, series: dict[str, Any], target: Path, backwards: bool) -> None:
    """Write the mask of a phantom series as DICOM SEG of two segments, slices in either order."""
    slices = [pydicom.dcmread(path) for path in sorted((phantom / series["folder"]).iterdir())]
    first = {str(ds.ImagePositionPatient): ds for ds in slices}
    slices = list(first.values())
    (path,) = (phantom / "masks").rglob(f"{series['series_uid']}.nii.gz")
    image: Any = nibabel.load(path)
    index = np.linalg.inv(image.affine) @ np.diag([-1, -1, 1, 1])
    data = np.asarray(image.dataobj)
    frames = []
    for ds in slices:
        row, column = (np.array(ds.ImageOrientationPatient[k : k + 3], float) for k in (0, 3))
        steps = np.stack([column * float(ds.PixelSpacing[0]), row * float(ds.PixelSpacing[1])], axis=1)
        r, c = np.mgrid[: ds.Rows, : ds.Columns]
        place = np.array(ds.ImagePositionPatient, float)[:, None] + steps @ np.stack([r.ravel(), c.ravel()])
        at = np.rint(index[:3, :3] @ place + index[:3, 3:]).astype(int)
        frames.append(data[tuple(at)].reshape(ds.Rows, ds.Columns))
    order = slice(None, None, -1) if backwards else slice(None)
    pixels = np.select([np.stack(frames) == 1, np.stack(frames) == 4], [1, 2]).astype(np.uint8)
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=kind,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, label, kind in ((1, "Tumour", codes.SCT.Neoplasm), (2, "OKONKWO^ADAEZE", codes.SCT.Edema))
    ]
    seg = hd.seg.Segmentation(
        source_images=slices[order],
        pixel_array=pixels[order],
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=uid(str(target)),
        series_number=9,
        sop_instance_uid=uid(f"{target}1"),
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="m",
        software_versions="1",
        device_serial_number="1",
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    seg.save_as(target)


def test_masks_in_other_orders_and_as_dicom_seg(phantom: Path, tmp_path: Path) -> None:
    """Half of the masks as NIfTI with axes turned, half as SEG with slices in either order: the same centroids."""
    masks = tmp_path / "masks"
    turns = (((0,), (2, 0, 1)), ((1, 2), (1, 0, 2)), ((0, 1, 2), (0, 2, 1)), ((2,), (1, 2, 0)))
    for number, series in enumerate(truths(phantom)):
        name = series["series_uid"]
        (path,) = (phantom / "masks").rglob(f"{name}.nii.gz")
        if number % 2:
            as_seg(phantom, series, masks / f"{number}.dcm", backwards=bool(number & 2))
        else:
            turned(path, masks / f"{name}.nii.gz", *turns[number // 2 % len(turns)])
    summary = run(phantom, masks, tmp_path / "out")
    assert (summary.masks, summary.refused_masks) == (summary.members, {})
    check(phantom, tmp_path / "out", len(truths(phantom)))
    found = [series.mask_names for _, series in lesions(tmp_path / "out").values()]
    assert {"1": "lesion", "2": "sct_79654002"} in found, found
    everything = b"".join(p.read_bytes() for p in (tmp_path / "out").iterdir())
    assert b"OKONKWO" not in everything


GRID = np.array([[-2.0, 0, 0, 40], [0, 2.0, 0, -48], [0, 0, 5.0, -15], [0, 0, 0, 1]])


def block(affine: np.ndarray, shape: tuple[int, int, int], low: float = -15, high: float = 15) -> Mask:
    """A cube of side 30 mm around the origin, drawn on a grid."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")).reshape(3, -1)
    places = (affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *shape)
    inside = ((places > low) & (places < high)).all(axis=0)
    return Mask(values=inside.astype(np.uint16), affine=affine, names={1: "lesion"})


def test_another_grid_is_resampled_to_the_nearest_voxel() -> None:
    fine = np.diag([1.0, 1.0, 1.5, 1.0])
    fine[:3, 3] = -40
    placed, exact = onto_grid(block(fine, (80, 80, 54), -13.3, 13.3), GRID, (40, 48, 6))
    assert not exact
    assert np.array_equal(placed, block(GRID, (40, 48, 6), -13.3, 13.3).values)


def test_a_mask_of_something_else_is_refused() -> None:
    """It lies beside the image, or loses most of itself on the image's slices."""
    far = np.diag([1.0, 1.0, 1.5, 1.0])
    far[:3, 3] = -40
    mask = block(far, (80, 80, 54))
    mask.affine = mask.affine + np.array([[0, 0, 0, 55.0], [0] * 4, [0] * 4, [0] * 4])
    with pytest.raises(QuarantineError, match="mask_mismatch"):
        onto_grid(mask, GRID, (40, 48, 6))
    thick = GRID @ np.diag([1, 1, 9.0, 1])
    with pytest.raises(QuarantineError, match="mask_mismatch"):
        onto_grid(block(far, (80, 80, 54), -4, 4), thick, (40, 48, 2))


def test_what_does_not_fit_is_quarantined_by_itself(make_series: MakeSeries, tmp_path: Path) -> None:
    """Damaged, of no series, twice, with broken numbers: each with its reason; the images stay."""
    for name in ("a", "b", "c"):
        make_series(folder=f"in/{name}", study=name, patient=f"P{name}000")
    masks = tmp_path / "masks"
    masks.mkdir()
    good = np.zeros((40, 48, 6), np.float32)
    good[10:20, 10:20, 2:4] = 1
    affine = np.diag([-2.0, 2.5, 5.0, 1.0])
    affine[:3, 3] = 50, 60 - 47 * 2.5, -20
    for name, data in (
        (uid("aseries"), good + 0.5),
        (uid("bseries"), good),
        (f"again/{uid('bseries')}", good),
        (uid("dseries"), good),
        (uid("cseries"), good),
    ):
        (masks / name).parent.mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(data, affine), masks / f"{name}.nii.gz")
    (masks / "notes.txt").write_text("x")
    config = PrepareConfig(key_file=str(tmp_path / "key"), masks=str(masks), deface=Deface.none)
    summary = prepare(str(tmp_path / "in"), None, None, str(tmp_path / "out"), config, 1)
    assert summary.refused_masks == {"mask_ambiguous": 2, "mask_damaged": 1, "mask_unknown_series": 1}
    assert (summary.masks, summary.members, summary.studies) == (1, 3, 3)
    table = Path(summary.link_table).read_text()
    lines = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert len(lines) == 4 and all(f"{line['item']},mask,{masks}" in table for line in lines)


def test_names_of_masks_are_checked() -> None:
    with pytest.raises(ConfigError, match="mask_names"):
        PrepareConfig(mask_names={"1": "Mrs Okonkwo"})


def test_real_hippocampi_with_their_masks(mri_dev: Path, tmp_path: Path) -> None:
    """NIfTI images and masks of the same names: both labels, volumes as in the mask files."""
    folder = mri_dev / "nifti" / "msd_hippocampus"
    names = sorted(path.name for path in (folder / "images").iterdir())[:3]
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for name in names:
            (tmp_path / kind / name).symlink_to(folder / kind / name)
    config = PrepareConfig(
        key_file=str(tmp_path / "key"), source=Source.nifti_files, masks=str(tmp_path / "labels"), deface=Deface.none,
        mask_names={"1": "anterior", "2": "posterior"},
    )  # fmt: skip
    summary = prepare(str(tmp_path / "images"), None, None, str(tmp_path / "out"), config, 1)
    assert (summary.studies, summary.masks, summary.refused_masks) == (3, 3, {})
    images: list[Any] = [nibabel.load(folder / "labels" / name) for name in names]
    counts = sorted(tuple(np.bincount(np.asarray(i.dataobj, int).ravel(), minlength=3)[1:]) for i in images)
    manifest = Manifest.open(str(tmp_path / "out"))
    found = []
    for key in manifest.keys:
        (series,) = manifest.study(key).series
        assert series.mask_names == {"1": "anterior", "2": "posterior"}
        mask = mask_from_sample(series, manifest.read(key, f"{series.name}.seg.b2"))
        found.append(tuple(np.bincount(mask.ravel(), minlength=3)[1:]))
    assert sorted(found) == counts


def test_a_broken_seg_says_nothing_of_itself(tmp_path: Path, keyring: Keyring) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(b"\0" * 128 + b"DICM" + b"1.2.840.10008.5.1.4.1.1.66.4" + b"x" * 300)
    found = find_masks(str(tmp_path), {}, keyring)
    assert [entry.reason for entry in found.entries] == [Reason.MASK_DAMAGED]
    with pytest.raises(QuarantineError, match="mask_damaged"):
        read_mask(str(path), {})
