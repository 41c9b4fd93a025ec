"""One converted volume becomes a shard member: the contract's axes, air to zero, quantised voxels, known quality."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep import deid
from data_prep.bias import QUANTITATIVE, correct_bias
from data_prep.convert import Volume
from data_prep.duplicates import likeness, voxel_hash
from data_prep.headers import Scan
from data_prep.ledger import QuarantineError, Reason
from data_prep.quality import checks
from data_prep.quality.pictures import thumbnail
from data_prep.sequences import Recognition
from fm.config.prepare import PrepareConfig
from fm.data.codec import CodecError, encode_volume
from fm.data.sample import Plane, SeriesMeta
from fm.grid import border_connected_air, bounding_box, canonical_axes

ROBUST_RANGE = (0.5, 99.5)
"""Percentiles of the body between which views scale intensities."""
MIN_FOREGROUND = 64
"""Fewer body voxels than this are no picture of a body."""


@dataclass(kw_only=True, slots=True)
class SeriesMember:
    """One series of a sample: its metadata and its ``.b2`` payload."""

    meta: SeriesMeta
    payload: bytes


def encode_series(
    volume: Volume, scan: Scan, recognition: Recognition, name: str, frame_of_reference: int, config: PrepareConfig
) -> SeriesMember:
    """Turn one volume into a member named `name`.

    Raises:
        QuarantineError: constant, not finite, singular, without a body, or beyond a quality limit that quarantines.
    """
    _check_values(volume)
    try:
        axes = canonical_axes(volume.affine, volume.values.shape, slice_axis=2)
    except ValueError:
        raise QuarantineError(Reason.NO_GEOMETRY) from None
    values = np.ascontiguousarray(axes.apply(volume.values))
    valid, along = _slices(volume, axes.flip[0])
    air = border_connected_air(values, valid)
    box = bounding_box(~air)
    if box is None or int(air.size - np.count_nonzero(air)) < MIN_FOREGROUND:
        raise QuarantineError(Reason.NO_TISSUE)
    acquired_values, corrected = values, config.n4 and recognition.contrast.value.value not in QUANTITATIVE
    if corrected:
        values = correct_bias(values, ~air, axes.spacing_mm, config.n4_shrink)
    inside = values[~air]
    low, high, *percentiles = np.percentile(inside, (*ROBUST_RANGE, *checks.PERCENTILES))
    try:
        encoded = encode_volume(values, air, config.quantisation_bits)
    except CodecError:
        raise QuarantineError(Reason.TOO_LARGE) from None
    meta = SeriesMeta(
        name=name,
        contrast=recognition.contrast.value,
        role=recognition.role.value,
        plane=Plane(axes.plane),
        shape=axes.shape,
        spacing_mm=axes.spacing_mm,
        affine=[[float(v) for v in row] for row in axes.affine],
        slice_position_mm=[round(float(at), 4) for at in along],
        slice_valid=[bool(v) for v in valid],
        frame_of_reference=frame_of_reference,
        foreground=box,
        intensity_scale=encoded.scale,
        intensity_offset=encoded.offset,
        intensity_low=float(low),
        intensity_high=float(high),
        agent=recognition.agent.value,
        repetition_time_ms=deid.bounded(scan.repetition_time_ms, 0.1, 60_000),
        echo_time_ms=deid.bounded(scan.echo_time_ms, 0.0, 2_000),
        inversion_time_ms=deid.bounded(scan.inversion_time_ms, 1.0, 20_000),
        flip_angle_deg=deid.bounded(scan.flip_angle_deg, 0.1, 360),
        b_value=deid.bounded(volume.b_value, 0.0, 50_000),
        field_strength_t=deid.bounded(scan.field_strength_t, 0.001, 30),
        vendor=deid.vendor(scan),
        region=recognition.region.value,
        fat_suppression=recognition.fat_suppression.value,
        acquisition=recognition.acquisition.value,
        dixon=recognition.dixon.value,
        evidence=recognition.evidence(),
        bias_corrected=corrected,
    )
    meta.statistics = checks.describe(inside, percentiles, inside.size / air.size, encoded.max_error)
    _assess(meta, checks.Picture(values=acquired_values, body=~air, valid=valid), config)
    return SeriesMember(meta=meta, payload=encoded.payload)


def _check_values(volume: Volume) -> None:
    """Refuse what is no picture: NaN, infinite, or one value throughout."""
    if not np.isfinite(volume.values).all():
        raise QuarantineError(Reason.NOT_FINITE)
    acquired = volume.values[:, :, volume.slice_valid]
    if acquired.size == 0 or float(acquired.min()) == float(acquired.max()):
        raise QuarantineError(Reason.CONSTANT)


def _assess(meta: SeriesMeta, picture: checks.Picture, config: PrepareConfig) -> None:
    """Fill in quality and hashes, all of the voxels as acquired.

    Raises:
        QuarantineError: beyond a limit that quarantines; with a thumbnail.
    """
    thin = checks.thinned(picture.values.shape)
    meta.quality = checks.measure(picture, meta)
    meta.voxel_hash = voxel_hash(picture.values, picture.valid)
    meta.likeness = likeness(picture.values[thin], picture.body[thin], np.asarray(meta.affine))
    try:
        meta.flags = checks.judge(meta.quality, config.limits, config.actions)
    except QuarantineError as err:
        err.picture = thumbnail(picture.values, meta)
        raise


def _slices(volume: Volume, flipped: bool) -> tuple[NDArray[np.bool_], list[float]]:
    """Validity and place of each slice, in the order of the stored axis."""
    if not flipped:
        return volume.slice_valid, volume.slice_mm
    return volume.slice_valid[::-1], [volume.slice_mm[-1] - at for at in reversed(volume.slice_mm)]
