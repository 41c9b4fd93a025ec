"""Shards written by plain webdataset, with NIfTI, NumPy, text and JSON members."""

from __future__ import annotations

import gzip
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import webdataset

from fm.data.foreign import index_shards
from fm.data.index import DatasetError, Manifest
from fm.data.mapping import ForeignError, Mapping
from fm.data.sample import Contrast, Plane
from fm.data.verify import verify
from fm.data.volume import from_sample, read_nifti
from launch.verbs.main import main

LANDMARK_MM = (12.0, -7.0, 30.0)
SAGITTAL = np.array([[0.0, 0.0, -4.0, 20.0], [-2.0, 0.0, 0.0, 25.0], [0.0, 2.0, 0.0, -10.0], [0.0, 0.0, 0.0, 1.0]])


def _nifti(path: Path) -> bytes:
    """A sagittal stack (L, P, S order of axes jumbled) with one bright voxel at the landmark."""
    values = np.random.default_rng(0).integers(200, 400, (30, 36, 8)).astype(np.float32)
    at = np.rint(np.linalg.solve(SAGITTAL, [*LANDMARK_MM, 1.0])[:3]).astype(int)
    values[tuple(at)] = 3000
    nibabel.Nifti1Image(values, SAGITTAL).to_filename(path)
    return gzip.decompress(path.read_bytes())  # webdataset's writer compresses what is called gz


def _npy(values: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, values)
    return sink.getvalue()


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Two shards of three samples each, by webdataset's own writer."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    nifti = _nifti(tmp_path / "image.nii.gz")
    for shard in range(2):
        with webdataset.TarWriter(str(folder / f"train-{shard}.tar")) as writer:
            for i in range(3):
                volume = np.random.default_rng(i).integers(1, 900, (5, 24, 20)).astype(np.int16)
                writer.write(
                    {
                        "__key__": f"Site-A/Sub-{shard}{i}",
                        "t1w.nii.gz": nifti,
                        "scan.npy": _npy(volume),
                        "txt": f"No lesion in study {i}.",
                        "json": {"subject_id": f"p{shard}{i // 2}", "fold": "train" if shard else "test",
                                 "years": 91 if i else 1.5, "sex": "F", "spacing": [5, 1, 1], "grade": i},
                        "cls": i,
                        "pyd": {"a": 1},
                    }
                )  # fmt: skip
    return folder


MAPPING = Mapping(
    fields={"patient": "subject_id", "split": "fold", "age": "years", "spacing_mm": "spacing"}, labels=["grade"]
)


def test_foreign_shards_become_a_dataset_that_verifies(foreign: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "ours")
    done = index_shards(str(foreign), out, MAPPING, 0.5, 0)
    assert (done.shards, done.studies, done.series, done.problems) == (2, 6, 12, [])
    assert done.ignored == {"cls": 6, "pyd": 6}, "pickled members stay unread"
    assert verify(out).problems == [] and verify(out, crops=3).problems == []
    manifest = Manifest.open(out)
    assert manifest.keys[0] == "site_a_sub_00" and {s.split for s in manifest.samples} == {"test", "train"}
    study = manifest.study("site_a_sub_11")
    assert (study.patient, study.age, study.sex, study.labels) == ("p10", "90+", "f", {"grade": 1})
    assert study.report is not None and study.report.diagnostic == "No lesion in study 1."
    scan, t1w = study.series
    assert (scan.name, scan.contrast, scan.plane, scan.spacing_mm) == ("scan", Contrast.OTHER, Plane.AXIAL, (5, 1, 1))
    assert (t1w.name, t1w.contrast, t1w.plane) == ("t1w", Contrast.T1W, Plane.SAGITTAL)
    assert scan.frame_of_reference != t1w.frame_of_reference
    volume = from_sample(scan, manifest.read(study.key, "scan.b2"))
    written = np.random.default_rng(1).integers(1, 900, (5, 24, 20))
    assert volume.body.mean() > 0.9 and np.array_equal(np.rint(volume.values)[volume.body], written[volume.body])
    image = from_sample(t1w, manifest.read(study.key, "t1w.b2"))
    brightest = np.unravel_index(image.stored.argmax(), image.stored.shape)
    assert np.allclose(image.affine @ [*brightest, 1], [*LANDMARK_MM, 1], atol=2.0)
    same = read_nifti(tmp_path / "image.nii.gz", Contrast.T1W)
    assert np.array_equal(image.stored, same.stored) and np.allclose(image.affine, same.affine)


def test_equal_shards_give_one_dataset_id_and_missing_splits_go_by_patient(foreign: Path, tmp_path: Path) -> None:
    mapping = Mapping(fields={"patient": "subject_id"}, images={"scan.npy": "flair"})
    ids = {index_shards(str(foreign), str(tmp_path / name), mapping, 0.5, 2).dataset_id for name in "ab"}
    assert len(ids) == 1
    manifest = Manifest.open(str(tmp_path / "a"))
    assert {s.split for s in manifest.samples} == {"train", "test"}
    assert [s.contrast for s in manifest.study("site_a_sub_00").series] == [Contrast.FLAIR]


def test_bad_samples_are_left_out_and_named(tmp_path: Path) -> None:
    good = _npy(np.arange(60, dtype=np.float32).reshape(3, 4, 5))
    bomb = bytearray(gzip.compress(b"\0" * 400))
    bad = {
        "objects": _npy(np.array([[[{"a": 1}]]], dtype=object)),
        "nan": _npy(np.full((3, 4, 5), np.nan)),
        "flat": _npy(np.ones((3, 4, 5))),
        "two": _npy(np.ones((3, 4))),
        "pickle": pickle.dumps([1]),
    }
    with webdataset.TarWriter(str(tmp_path / "s.tar"), encoder=False) as writer:
        writer.write({"__key__": "good", "npy": good})
        for name, payload in bad.items():
            writer.write({"__key__": name, "npy": payload})
        writer.write({"__key__": "bomb", "nii.gz": bytes(bomb)})
        writer.write({"__key__": "notjson", "npy": good, "json": b"["})
        writer.write({"__key__": "none", "txt": b"only words"})
        writer.write({"__key__": "GOOD", "npy": good})
    done = index_shards(str(tmp_path), str(tmp_path / "out"), Mapping(), 0.0, 0)
    assert done.studies == 1
    named = {line.split("sample ")[1].split(":")[0] for line in done.problems}
    assert named == {*bad, "bomb", "notjson", "none", "GOOD"}


def test_our_own_shards_get_an_index_in_place_and_keep_their_splits(
    make_dataset: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    url = make_dataset()
    before = Manifest.open(url)
    Path(url, "manifest.json").unlink()
    assert main(["index", f"url={url}"]) == 0
    assert f"next: fm verify url={url}" in capsys.readouterr().out
    assert Manifest.open(url).dataset_id == before.dataset_id


def test_refusals_are_one_line(foreign: Path, tmp_path: Path, make_dataset: Callable[..., str]) -> None:
    with pytest.raises(DatasetError, match="give out=URL"):
        index_shards(str(foreign), None, Mapping(), 0.0, 0)
    with pytest.raises(ForeignError, match=r"no \*\.tar"):
        index_shards(str(tmp_path / "nowhere"), None, Mapping(), 0.0, 0)
    with pytest.raises(ForeignError, match="a dataset is there already"):
        index_shards(str(foreign), make_dataset(), Mapping(), 0.0, 0)
    with pytest.raises(ForeignError, match="is no contrast"):
        index_shards(str(foreign), None, Mapping(images={"a.npy": "t9"}), 0.0, 0)
    with pytest.raises(ForeignError, match="is none of ours"):
        index_shards(str(foreign), None, Mapping(fields={"patients": "x"}), 0.0, 0)


def test_both_verbs_on_foreign_shards(foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ours"
    words = [f"url={foreign}", f"out={out}", "fields={patient: subject_id, split: fold}", "images={t1w.nii.gz: t1w}"]
    assert main(["index", *words, "labels=[grade]"]) == 0
    printed = capsys.readouterr().out
    assert "2 shards, 6 studies, 6 series" in printed and "not read: 6 members scan.npy" in printed
    assert main(["verify", f"url={out}", "crops=2"]) == 0
    assert "6 series" in capsys.readouterr().out
    shard = out / "shard-000001.tar"
    payload = bytearray(shard.read_bytes())
    payload[Manifest.open(str(out)).sample("site_a_sub_12").members["t1w.b2"].offset + 200] ^= 1
    shard.write_bytes(bytes(payload))
    assert main(["verify", f"url={out}"]) == 1
    assert "damaged: shard-000001.tar: its hash" in capsys.readouterr().out
    assert json.loads((out / "manifest.json").read_text())["versions"]["index"] == "foreign"
