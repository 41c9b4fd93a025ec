"""Heads of 64×256×256 voxels, as shards and in the forms that others read."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from fm.data.codec import encode_volume
from fm.data.index import write_index
from fm.data.sample import Contrast, Plane, Role, SeriesMeta, StudyMeta, to_json
from fm.data.verify import scan_shard

PLAIN_SHARDS = 4
"""Of the plain WebDataset, so that two workers have as much to read."""
SHAPE, SPACING_MM = (64, 256, 256), (2.5, 0.9, 0.9)
AFFINE = [[0, 0, 0.9, -115], [0, 0.9, 0, -115], [2.5, 0, 0, -80], [0, 0, 0, 1]]


def head(number: int) -> tuple[SeriesMeta, bytes, NDArray[np.uint16]]:
    """One head: an ellipsoid of smooth tissue with noise of an SNR of about 30, air zeroed; 29 % of its box is body."""
    rng = np.random.default_rng(number)
    d, h, w = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    body = (d / 0.95) ** 2 + (h / 0.85) ** 2 + (w / 0.7) ** 2 < 1
    tissue = 900 + 3000 * gaussian_filter(rng.standard_normal(SHAPE), 3) + 30 * rng.standard_normal(SHAPE)
    values = np.clip(np.rint(tissue), 1, 4095) * body
    encoded = encode_volume(values.astype(np.float32), ~body)
    inside = [np.flatnonzero(body.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    meta = SeriesMeta(
        name="t1w",
        contrast=Contrast.T1W,
        role=Role.ORIGINAL,
        plane=Plane.AXIAL,
        shape=SHAPE,
        spacing_mm=SPACING_MM,
        affine=AFFINE,
        slice_position_mm=[SPACING_MM[0] * i for i in range(SHAPE[0])],
        slice_valid=[True] * SHAPE[0],
        frame_of_reference=0,
        foreground=(tuple(int(i[0]) for i in inside), tuple(int(i[-1]) + 1 for i in inside)),  # type: ignore[arg-type]
        intensity_scale=encoded.scale,
        intensity_offset=encoded.offset,
        intensity_low=400.0,
        intensity_high=1400.0,
    )
    return meta, encoded.payload, values.astype(np.uint16)


def write_all(folder: Path, count: int) -> dict[str, SeriesMeta]:
    """Shards, ``.nii.gz``, ``.npy`` and a plain WebDataset of ``.npy`` members of the same heads; metadata by key."""
    for name in ("shards", "nifti", "npy", "wds"):
        (folder / name).mkdir()
    metas = {}
    shard = folder / "shards" / "shard-000000.tar"
    plain = [folder / "wds" / f"plain-{i:06d}.tar" for i in range(PLAIN_SHARDS)]
    with ExitStack() as stack:
        tar = stack.enter_context(tarfile.open(shard, "w"))
        others = [stack.enter_context(tarfile.open(path, "w")) for path in plain]
        for number in range(count):
            key = f"head{number:03d}"
            meta, payload, values = head(number)
            study = StudyMeta(key=key, patient=f"p{number}", region="head", series=[meta])
            _add(tar, f"{key}.json", to_json(study))
            _add(tar, f"{key}.t1w.b2", payload)
            np.save(folder / "npy" / f"{key}.npy", values)
            _add(others[number * PLAIN_SHARDS // count], f"{key}.npy", (folder / "npy" / f"{key}.npy").read_bytes())
            nibabel.save(nibabel.Nifti1Image(values, np.array(AFFINE)), folder / "nifti" / f"{key}.nii.gz")
            metas[key] = meta
    with shard.open("rb") as stream:
        found, samples = scan_shard(stream, shard.name)
    for sample in samples:
        sample.split = "train"
    write_index(str(folder / "shards"), [found], samples, {})
    return metas


def bytes_of(folder: Path) -> int:
    """Bytes of all files of a folder."""
    return sum(file.stat().st_size for file in _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file())


def _add(tar: tarfile.TarFile, name: str, payload: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(payload)
    tar.addfile(info, io.BytesIO(payload))
