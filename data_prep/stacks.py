"""A SeriesInstanceUID may hold several geometries, echoes and b-values: split it into stacks that convert alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pydicom

from data_prep.geometry import make_frame, places
from data_prep.headers import Header
from data_prep.ledger import QuarantineError, Reason

SAME_DIRECTION = 1e-3
"""Orientations closer than this are one: scanners round differently from slice to slice."""
_B0 = 50.0


@dataclass(kw_only=True, slots=True)
class Stack:
    """Files of one geometry and contrast."""

    headers: list[Header]
    dropped: list[Header] = field(default_factory=list)
    """Duplicates, pixel for pixel."""


def split_series(headers: Sequence[Header]) -> list[list[Header]]:
    """Split a series by geometry, image type, echo, inversion and b-value; acquisition order within each.

    Enhanced files are stacks of their own; tiled ones (mosaic, UIH grid) stay together, one volume each.
    """
    groups: dict[tuple[object, ...], list[Header]] = {}
    ordered = sorted(headers, key=lambda h: (h.instance, h.position or (), h.instance_uid, h.path))
    for header in ordered:
        scan = header.scan
        contrast: tuple[object, ...] = (scan.image_type, scan.echo_time_ms, scan.inversion_time_ms)
        if not header.tiled:
            contrast = (*contrast, scan.b_value)
        shape = (header.rows, header.columns, header.enhanced, header.tiled, header.path if header.enhanced else "")
        key = (*shape, *contrast, _near(groups, header, (*shape, *contrast)))
        groups.setdefault(key, []).append(header)
    return list(groups.values())


def drop_duplicates(headers: Sequence[Header]) -> Stack:
    """Take out slices that are there twice with the same pixels.

    Raises:
        QuarantineError: two slices at one place, or under one UID, differ in their pixels; or a repeated
            acquisition lacks slices.
    """
    by_uid: dict[str, list[Header]] = {}
    for header in headers:
        by_uid.setdefault(header.instance_uid, []).append(header)
    kept: list[Header] = []
    dropped: list[Header] = []
    for same in by_uid.values():
        first, *rest = sorted(same, key=lambda h: h.path)
        if rest and len({_pixel_hash(h.path) for h in same}) > 1:
            raise QuarantineError(Reason.DUPLICATE_CONFLICT)
        kept.append(first)
        dropped.extend(rest)
    if headers[0].enhanced or headers[0].tiled:
        return Stack(headers=kept, dropped=dropped)
    frames = [make_frame(h.position, h.orientation, h.pixel_spacing) for h in kept]
    rank, at = places(frames)
    counts = np.bincount(rank, minlength=len(at))
    if counts.min() == counts.max():
        return Stack(headers=kept, dropped=dropped)
    if np.median(counts) > counts.min():
        raise QuarantineError(Reason.IRREGULAR_SLICES)  # a repeated acquisition that lacks slices
    surplus: set[int] = set()
    for place in np.flatnonzero(counts > counts.min()):
        here = np.flatnonzero(rank == place)
        hashes = [_pixel_hash(kept[int(index)].path) for index in here]
        extra = [int(index) for n, index in enumerate(here) if hashes[n] in hashes[:n]]
        if counts[place] - len(extra) != counts.min():
            raise QuarantineError(Reason.DUPLICATE_CONFLICT)
        surplus.update(extra)
    dropped.extend(kept[index] for index in sorted(surplus))
    return Stack(headers=[h for index, h in enumerate(kept) if index not in surplus], dropped=dropped)


def shell_of(b_value: float | None) -> int | None:
    """Nominal diffusion shell of a b-value in s/mm²: 0 up to 50, else the nearest 50; None stays."""
    if b_value is None:
        return None
    return 0 if b_value <= _B0 else round(b_value / 50) * 50


def _near(groups: dict[tuple[object, ...], list[Header]], header: Header, rest: tuple[object, ...]) -> int:
    """Number of the geometry within groups of equal `rest`: an earlier one that is near enough, or a new one."""
    count = 0
    for key, members in groups.items():
        if key[:-1] != rest:
            continue
        count += 1
        if _alike(members[0].orientation, header.orientation) and _alike(
            members[0].pixel_spacing, header.pixel_spacing
        ):
            number = key[-1]
            return number if isinstance(number, int) else 0
    return count


def _alike(a: tuple[float, ...] | None, b: tuple[float, ...] | None) -> bool:
    if a is None or b is None:
        return a is b
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) < SAME_DIRECTION


def _pixel_hash(path: str) -> bytes:
    """Hash of the stored pixel bytes."""
    try:
        return hashlib.sha256(pydicom.dcmread(path, force=True).PixelData).digest()
    except Exception:  # damage is found and named by the conversion
        return path.encode("utf-8", "surrogateescape")
