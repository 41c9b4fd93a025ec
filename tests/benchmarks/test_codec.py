"""Ways to store a volume: bytes against the time of a crop, the whole volume and writing."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import blosc2
import numpy as np
from numpy.typing import NDArray

from fm.data.codec import decode_volume, encode_codes
from tests.benchmarks.measure import in_turns, table
from tests.benchmarks.volumes import head

ROUNDS = 5
CROP = (24, 96, 96)
WAYS = {
    "LZ4 5, bitshuffle": (blosc2.Codec.LZ4, 5, blosc2.Filter.BITSHUFFLE),
    "LZ4 5, shuffle": (blosc2.Codec.LZ4, 5, blosc2.Filter.SHUFFLE),
    "LZ4HC 9, bitshuffle": (blosc2.Codec.LZ4HC, 9, blosc2.Filter.BITSHUFFLE),
    "Zstd 1, bitshuffle": (blosc2.Codec.ZSTD, 1, blosc2.Filter.BITSHUFFLE),
    "Zstd 5, bitshuffle": (blosc2.Codec.ZSTD, 5, blosc2.Filter.BITSHUFFLE),
    "Zstd 5, shuffle": (blosc2.Codec.ZSTD, 5, blosc2.Filter.SHUFFLE),
}
SHAPES = {
    "16×128×128 / 4×64×64": ((16, 128, 128), (4, 64, 64)),
    "16×128×128 / 1×64×64": ((16, 128, 128), (1, 64, 64)),
    "16×128×128 / 8×32×32": ((16, 128, 128), (8, 32, 32)),
    "8×64×64 / 4×32×32": ((8, 64, 64), (4, 32, 32)),
    "32×256×256 / 8×64×64": ((32, 256, 256), (8, 64, 64)),
}


def volumes() -> dict[str, NDArray[np.uint16]]:
    """A made-up head and, where MRI_DEV_DATA is set, real ones: the series of mri_dev at full resolution."""
    found = {"made up, 64×256×256": head(0)[2]}
    if root := os.environ.get("MRI_DEV_DATA"):
        from tests.data_prep.quality.measured import series_of

        for entry in series_of(Path(root) / "dicom"):
            if min(entry.picture.values.shape[1:]) >= 200:
                name = f"{entry.meta.name}, {'×'.join(map(str, entry.meta.shape))}"
                found[name] = np.rint(np.where(entry.picture.body, entry.picture.values, 0)).astype(np.uint16)
    return found


def encode(stored: NDArray[np.uint16], way: str, shape: str) -> bytes:
    """The volume in one way."""
    codec, level, filter_ = WAYS[way]
    chunks, blocks = (tuple(min(a, b) for a, b in zip(part, stored.shape, strict=True)) for part in SHAPES[shape])
    parameters = blosc2.CParams(codec=codec, clevel=level, filters=[filter_], typesize=2, nthreads=1)
    return bytes(blosc2.asarray(stored, chunks=chunks, blocks=blocks, cparams=parameters).to_cframe())


def test_size_and_time() -> None:
    blosc2.set_nthreads(1)
    pictures = list(volumes().values())
    ways = [(way, next(iter(SHAPES))) for way in WAYS] + [(next(iter(WAYS)), shape) for shape in list(SHAPES)[1:]]
    first = encode(pictures[0], *ways[0])
    assert first == encode_codes(pictures[0]), "the first way is the one that fm uses"
    places = np.random.default_rng(0)
    rows = []
    for way, shape in ways:
        payloads = [encode(picture, way, shape) for picture in pictures]
        boxes = [
            tuple(
                slice(start, start + size)
                for start, size in (
                    (int(places.integers(0, max(1, n - c + 1))), min(c, n)) for n, c in zip(p.shape, CROP, strict=True)
                )
            )
            for p in pictures
        ]
        for picture, payload, box in zip(pictures, payloads, boxes, strict=True):
            assert np.array_equal(decode_volume(payload, box), picture[box])  # type: ignore[arg-type]
        timings = in_turns(
            {
                "crop": lambda p=payloads, b=boxes: [decode_volume(x, y) for x, y in zip(p, b, strict=True)],
                "whole": lambda p=payloads: [decode_volume(x) for x in p],
                "write": partial(_encode_all, pictures, way, shape),
            },
            ROUNDS,
        )
        raw, size = sum(p.nbytes for p in pictures), sum(map(len, payloads))
        cells = [f"{1000 * timings[name].cpu_median / len(pictures):.2f}" for name in ("crop", "whole", "write")]
        rows.append([way, shape, f"{size / raw:.3f}", *cells])
    heading = [
        "codec, level, filter",
        "chunk / block",
        "bytes / raw",
        "crop, CPU ms",
        "whole, CPU ms",
        "writing, CPU ms",
    ]
    table(f"Codecs, {len(pictures)} volumes, crops of 24×96×96", heading, rows, ["blosc2", "numpy"])


def _encode_all(pictures: list[NDArray[np.uint16]], way: str, shape: str) -> None:
    for picture in pictures:
        encode(picture, way, shape)
