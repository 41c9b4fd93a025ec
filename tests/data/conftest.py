from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import webdataset

from fm.data.codec import encode_volume
from fm.data.index import write_index
from fm.data.sample import Contrast, Plane, Role, SeriesMeta, StudyMeta, to_json
from fm.data.verify import scan_shard


def study_members(key: str, seed: int) -> dict[str, bytes]:
    """Members of a small study with one T1w series."""
    values = np.random.default_rng(seed).integers(0, 900, (4, 20, 30)).astype(np.float32)
    encoded = encode_volume(values)
    series = SeriesMeta(
        name="t1w",
        contrast=Contrast.T1W,
        role=Role.ORIGINAL,
        plane=Plane.AXIAL,
        shape=(4, 20, 30),
        spacing_mm=(3.0, 1.0, 1.0),
        affine=np.diag([1.0, 1.0, 3.0, 1.0])[[2, 1, 0, 3]].tolist(),
        slice_position_mm=[0.0, 3.0, 6.0, 9.0],
        slice_valid=[True] * 4,
        frame_of_reference=0,
        foreground=((0, 0, 0), (4, 20, 30)),
        intensity_scale=encoded.scale,
        intensity_offset=encoded.offset,
        intensity_low=4.0,
        intensity_high=890.0,
    )
    meta = StudyMeta(key=key, patient=f"p{seed}", region="head", series=[series], labels={"lesion": seed % 2})
    return {"json": to_json(meta), "t1w.b2": encoded.payload}


def write_shard(path: Path, samples: Sequence[tuple[str, dict[str, bytes]]]) -> None:
    with path.open("wb") as file:
        writer = webdataset.TarWriter(file, user="", group="", mtime=0, encoder=False)
        for key, members in samples:
            writer.write({"__key__": key, **members})
        writer.close()


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., str]:
    """Write a dataset of `shards` shards with `studies` studies each; returns its folder."""

    def make(shards: int = 2, studies: int = 3, name: str = "dataset") -> str:
        folder = tmp_path / name
        folder.mkdir()
        found, rows = [], []
        for number in range(shards):
            path = folder / f"shard-{number:06d}.tar"
            keys = [f"k{number}{index}" for index in range(studies)]
            write_shard(path, [(key, study_members(key, 10 * number + i)) for i, key in enumerate(keys)])
            with path.open("rb") as stream:
                shard, samples = scan_shard(stream, path.name)
            found.append(shard)
            rows.extend(samples)
        for row, sample in enumerate(rows):
            sample.split = "test" if row % 3 == 0 else "train"
        write_index(str(folder), found, rows, {"code": "test"})
        return str(folder)

    return make
