"""The same volume twice: exact copies by a hash of the voxels, copies saved again by a hash of their likeness.

Likeness is a hash of signs of a cosine transform (Zauner, Implementation and Benchmarking of Perceptual Image Hash
Functions, 2010) in three dimensions, of block means on a grid that the volume's own centre and spread place: it does
not see how the array lies in memory, where the picture ends, how the values are scaled, or a little noise. Few bits
apart makes a candidate; the correlation of the two volumes' detail decides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.ndimage import uniform_filter

from fm.grid.orientation import world_axes

Floats = NDArray[np.float32]

CANDIDATE_BITS = 32
"""Of the 342 bits of a likeness, at most so many differ between two copies."""
MIN_CORRELATION = 0.85
"""Of the detail of two volumes: above it they are one."""
_CELLS, _ORDER = 16, 7
_DETAIL_CELLS = 32
_REACH = 2.2
"""Half the grid's width in standard deviations of the brightness along an axis."""
_ROWS = 512


@dataclass(kw_only=True, slots=True)
class Fingerprint:
    """What is kept of a series to find its copies."""

    study: str
    series: str
    patient: str
    kind: str
    """Contrast and agent: series of one study that differ in it share an anatomy, not a volume."""
    voxel_hash: str
    likeness: str


@dataclass(kw_only=True, slots=True)
class Duplicate:
    """Two series that hold one volume."""

    first: Fingerprint
    second: Fingerprint
    exact: bool
    bits: int
    """Of the likeness that differ."""
    correlation: float

    @property
    def same_patient(self) -> bool:
        """Whether both are of one patient."""
        return self.first.patient == self.second.patient


def voxel_hash(values: Floats, valid: NDArray[np.bool_]) -> str:
    """Hash of the acquired slices' values and shape, as 32 hexadecimal digits.

    Args:
        values: (D, H, W) the scanner's units, canonical axes.
        valid: (D,) acquired slices.
    """
    kept = np.ascontiguousarray(values[valid], dtype="<f4")
    return hashlib.blake2b(kept.data, digest_size=16, salt="x".join(map(str, kept.shape)).encode()[:16]).hexdigest()


def likeness(values: Floats, body: NDArray[np.bool_], affine: NDArray[np.float64]) -> str:
    """Perceptual hash of a volume as hexadecimal digits; empty where it has no extent.

    Args:
        values: (D, H, W).
        body: (D, H, W), the rest counts as zero.
        affine: (d, h, w, 1) to RAS+ mm; only the order of the axes is taken from it.
    """
    grid = _canonical(np.where(body, values, 0), affine, _CELLS)
    if grid is None:
        return ""
    spectrum = dctn(grid, norm="ortho")[:_ORDER, :_ORDER, :_ORDER].ravel()[1:]
    return np.packbits(spectrum > np.median(spectrum)).tobytes().hex()


def find_duplicates(
    series: Sequence[Fingerprint], load: Callable[[Fingerprint], tuple[Floats, NDArray[np.float64]]]
) -> list[Duplicate]:
    """All pairs of series that hold one volume, in the order given.

    Every pair's likeness is compared (the time grows with the square: 20,000 series take some seconds).

    Args:
        series: of the whole dataset.
        load: gives the voxels (D, H, W), zero in air, and the affine of a series; asked for candidates alone.
    """
    found = []
    for a, b, bits in _near(series):
        first, second = series[a], series[b]
        exact = first.voxel_hash == second.voxel_hash
        if not exact and first.study == second.study and first.kind != second.kind:
            continue
        correlation = 1.0 if exact else detail_correlation(*load(first), *load(second))
        if correlation >= MIN_CORRELATION:
            found.append(
                Duplicate(first=first, second=second, exact=exact, bits=bits, correlation=round(correlation, 3))
            )
    return found


def detail_correlation(
    values: Floats, affine: NDArray[np.float64], other: Floats, other_affine: NDArray[np.float64]
) -> float:
    """Correlation of what is finer than a tenth of the body, each volume on its own canonical grid; best of three
    places along each axis."""
    one, two = _canonical(values, affine, _DETAIL_CELLS), _canonical(other, other_affine, _DETAIL_CELLS)
    if one is None or two is None:
        return 0.0
    first, second = one - uniform_filter(one, 7), two - uniform_filter(two, 7)
    best = -1.0
    for axis in range(3):
        for shift in (-1, 0, 1):
            moved = np.roll(second, shift, axis)
            scale = float(np.linalg.norm(first)) * float(np.linalg.norm(moved))
            best = max(best, float((first * moved).sum()) / scale if scale > 0 else 0.0)
    return best


def table(duplicates: Sequence[Duplicate], splits: dict[str, str]) -> bytes:
    """``duplicates.parquet``: one row a pair.

    Args:
        duplicates: what was found.
        splits: split of each study.
    """
    rows: list[dict[str, Any]] = [
        {
            "study": pair.first.study,
            "series": pair.first.series,
            "split": splits[pair.first.study],
            "other_study": pair.second.study,
            "other_series": pair.second.series,
            "other_split": splits[pair.second.study],
            "same_patient": pair.same_patient,
            "exact": pair.exact,
            "bits": pair.bits,
            "correlation": pair.correlation,
        }
        for pair in duplicates
    ]
    words = ("study", "series", "split", "other_study", "other_series", "other_split")
    schema = pa.schema(
        [
            *((word, pa.string()) for word in words),
            ("same_patient", pa.bool_()),
            ("exact", pa.bool_()),
            ("bits", pa.int32()),
            ("correlation", pa.float64()),
        ]
    )
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="zstd")
    return bytes(sink.getvalue())


def from_table(rows: pa.Table, series: Sequence[Fingerprint]) -> list[Duplicate]:
    """The pairs of a table whose series are still there.

    Args:
        rows: as :func:`table` wrote them.
        series: of the dataset.
    """
    known = {(entry.study, entry.series): entry for entry in series}
    found = []
    for row in rows.to_pylist():
        first, second = known.get((row["study"], row["series"])), known.get((row["other_study"], row["other_series"]))
        if first is not None and second is not None:
            found.append(
                Duplicate(
                    first=first,
                    second=second,
                    exact=row["exact"],
                    bits=row["bits"],
                    correlation=row["correlation"],
                )
            )
    return found


def superfluous(duplicates: Sequence[Duplicate], standing: Set[str], left_out: Set[str]) -> set[str]:
    """New studies to leave out so that no volume is there in two: of each pair the new one, or that of the later key.

    Args:
        duplicates: what was found.
        standing: studies of the dataset that is appended to.
        left_out: those of them that are in no split.
    """
    gone = set(left_out)
    for pair in sorted(duplicates, key=lambda pair: (pair.first.study, pair.second.study)):
        first, second = sorted((pair.first.study, pair.second.study), key=lambda study: (study not in standing, study))
        if first != second and first not in gone and second not in standing:
            gone.add(second)
    return gone - left_out


def _near(series: Sequence[Fingerprint]) -> Iterator[tuple[int, int, int]]:
    """Pairs that are exact copies or few bits apart, with the number of bits."""
    width = -(-(_ORDER**3 - 1) // 64) * 8
    codes = np.zeros((len(series), width), dtype=np.uint8)
    known = np.zeros(len(series), dtype=bool)
    for row, entry in enumerate(series):
        bits = bytes.fromhex(entry.likeness)
        codes[row, : len(bits)] = np.frombuffer(bits, dtype=np.uint8)
        known[row] = bool(bits)
    hashes = np.unique([entry.voxel_hash for entry in series], return_inverse=True)[1]
    words = codes.view(np.uint64)
    for start in range(0, len(series), _ROWS):
        rows = words[start : start + _ROWS]
        apart = np.zeros((len(rows), len(series) - start), dtype=np.uint16)
        for word in range(words.shape[1]):
            apart += np.bitwise_count(rows[:, word, None] ^ words[None, start:, word])
        near = (apart <= CANDIDATE_BITS) & known[start : start + _ROWS, None] & known[None, start:]
        near |= hashes[start : start + _ROWS, None] == hashes[None, start:]
        for a, b in np.argwhere(np.triu(near, 1)):
            yield start + int(a), start + int(b), int(apart[a, b])


def _canonical(values: Floats, affine: NDArray[np.float64], cells: int) -> Floats | None:
    """(cells, cells, cells) block means, axes R, A, S, centred on the brightness and scaled to its spread."""
    grid: Floats = np.asarray(values, dtype=np.float32)
    plane = grid.sum(axis=2)
    profiles = plane.sum(axis=1), plane.sum(axis=0), grid.sum(axis=(0, 1))
    for axis, profile in enumerate(profiles):
        weights = _blocks(np.maximum(profile.astype(np.float64), 0), cells)
        if weights is None:
            return None
        grid = np.moveaxis(np.tensordot(weights, grid, (1, axis)), 0, axis)
    turned: Floats = grid.transpose(np.argsort(world_axes(affine)))
    return turned


def _blocks(profile: NDArray[np.float64], cells: int) -> Floats | None:
    """(cells, N) weights of the means of blocks around a profile's centre; None where it has none."""
    total = float(profile.sum())
    if total <= 0:
        return None
    at = np.arange(len(profile)) + 0.5
    centre = float(profile @ at) / total
    half = _REACH * max(float(np.sqrt(profile @ (at - centre) ** 2 / total)), 0.25)
    edges = np.linspace(centre - half, centre + half, cells + 1)
    overlap = np.minimum(edges[1:, None], at + 0.5) - np.maximum(edges[:-1, None], at - 0.5)
    weights: Floats = (np.clip(overlap, 0, None) * cells / (2 * half)).astype(np.float32)
    return weights
