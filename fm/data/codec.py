"""Voxels to bytes and back: an integer-quantised blosc2 cframe whose crops decode without the rest.

A stored 0 means air, a missing slice, or no signal at all; wherever an air mask was given, body voxels are stored as 1
or more, so ``stored > 0`` is the body. ``value = stored * scale + offset`` gives the scanner's units.

Payloads are hostile until checked: the frame header is parsed here, against a closed list of shapes, dtypes, codecs
and filters, before the blosc2 library sees a byte or anything is allocated. Frames with metadata beyond the array's
own shape are refused, so nothing is ever unpickled. Layout: c-blosc2's
``README_CFRAME_FORMAT.rst`` and ``README_B2ND_METALAYER.rst``.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import blosc2
import numpy as np
from numpy.typing import NDArray

MAX_VOXELS = 2**29
"""Largest volume that is stored or decoded: 1 GiB of uint16, four 512³ scans."""
MAX_CHUNK_BYTES = 2**26

_CHUNK = (16, 128, 128)
_BLOCK = (8, 32, 32)
_DTYPES: dict[bytes, np.dtype[Any]] = {b"|u1": np.dtype("u1"), b"<u2": np.dtype("<u2")}
_BUILT_IN_CODECS = range(0, 6)
_PLAIN_FILTERS = {0, 1, 2}
_HEADER_BYTES, _LONGEST_HEADER = 87, 4096


class CodecError(ValueError):
    """A payload that is not a volume this code wrote, or is larger than it may be."""


@dataclass(kw_only=True, slots=True)
class EncodedVolume:
    """A volume as stored: ``value = stored * scale + offset``."""

    payload: bytes
    scale: float
    offset: float
    max_error: float
    """Largest difference between a body voxel and its stored value, in the scanner's units."""


@dataclass(kw_only=True, slots=True)
class FrameInfo:
    """What a frame's header says, checked."""

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]


def encode_volume(values: NDArray[Any], air: NDArray[np.bool_] | None = None, bits: int = 12) -> EncodedVolume:
    """Quantise and compress a volume (D, H, W) of finite values.

    Whole numbers that fit in `bits` are stored exactly; anything else is scaled so that the largest value takes the
    largest code (no clipping). The same values give the same bytes.

    Args:
        values: (D, H, W), the scanner's units.
        air: (D, H, W) True where the voxel is stored as 0; None stores every voxel.
        bits: 8 to 16 bits a voxel; up to 8 is stored as uint8.

    Raises:
        CodecError: the volume is empty, too large, not three-dimensional, or not finite.
    """
    if values.ndim != 3 or not 0 < values.size <= MAX_VOXELS:
        raise CodecError(f"a volume of shape {values.shape} cannot be stored")
    if not 8 <= bits <= 16:
        raise CodecError(f"{bits} bits a voxel: choose 8 to 16")
    body = np.ones(values.shape, dtype=bool) if air is None else ~air
    inside = values[body]
    if not np.isfinite(inside).all():
        raise CodecError("the volume holds NaN or infinite voxels")
    scale, offset = _scaling(inside, (1 << bits) - 1)
    exact = scale == 1.0 and offset == 0.0
    codes = np.rint(inside if exact else (inside.astype(np.float64) - offset) / scale)
    if air is not None:
        np.maximum(codes, 1, out=codes)
    error = float(np.abs((codes if exact else codes * scale + offset) - inside).max(initial=0.0))
    stored = np.zeros(values.shape, dtype=np.uint8 if bits <= 8 else np.dtype("<u2"))
    stored[body] = codes
    return EncodedVolume(payload=encode_codes(stored), scale=scale, offset=offset, max_error=error)


def encode_codes(stored: NDArray[Any]) -> bytes:
    """Compress stored integers (D, H, W), uint8 or uint16, as they are; also the form of a label map.

    Raises:
        CodecError: another dtype, or not three axes.
    """
    if stored.ndim != 3 or stored.dtype not in (np.dtype("u1"), np.dtype("<u2")):
        raise CodecError(f"cannot store {stored.dtype} of shape {stored.shape}")
    chunks = tuple(min(c, n) for c, n in zip(_CHUNK, stored.shape, strict=True))
    blocks = tuple(min(b, c) for b, c in zip(_BLOCK, chunks, strict=True))
    blosc2.set_nthreads(1)
    # On real heads, against LZ4 after bitshuffle in blocks of (4, 64, 64): 15 % smaller, crops decode in 0.7 of the
    # time, and writing takes six times as long (140 MB/s). Zstd is smaller still and decodes in twice the time.
    width = stored.dtype.itemsize
    plane = blosc2.Filter.BITSHUFFLE if width == 1 else blosc2.Filter.SHUFFLE
    cparams = blosc2.CParams(codec=blosc2.Codec.LZ4HC, clevel=5, filters=[plane], typesize=width, nthreads=1)
    array = blosc2.asarray(np.ascontiguousarray(stored), chunks=chunks, blocks=blocks, cparams=cparams)
    return bytes(array.to_cframe())


def decode_volume(payload: bytes | memoryview, box: tuple[slice, slice, slice] | None = None) -> NDArray[Any]:
    """Stored integers of a payload, or of the crop `box` alone (only its blocks are decompressed).

    Args:
        payload: what :func:`encode_volume` made.
        box: slices along (D, H, W), step 1; None decodes everything.

    Raises:
        CodecError: the payload is damaged, oversized, or not a plain volume.
    """
    info = read_header(payload)
    # One thread: the loader's worker processes are the parallelism
    blosc2.set_nthreads(1)
    try:
        array = blosc2.ndarray_from_cframe(payload)
        if tuple(array.shape) != info.shape or array.dtype != info.dtype:
            raise CodecError("the volume's frame contradicts its header")
        return _part(array, box or tuple(slice(0, n) for n in info.shape))
    except CodecError:
        raise
    except Exception as err:  # the C library reports damage through many types
        raise CodecError(f"the volume does not decode: {type(err).__name__}") from err


def read_header(payload: bytes | memoryview) -> FrameInfo:
    """Shape and dtype of a payload, without decoding it.

    Raises:
        CodecError: not the frame of a plain uint8 or uint16 volume within the size limits.
    """
    try:
        return _parse(bytes(payload[:_LONGEST_HEADER]), len(payload))
    except (struct.error, IndexError) as err:
        raise CodecError("the volume's frame is cut short") from err


def _scaling(inside: NDArray[Any], top: int) -> tuple[float, float]:
    if inside.size == 0:
        return 1.0, 0.0
    low, high = float(inside.min()), float(inside.max())
    offset = min(0.0, low)
    if high - offset <= top and offset == math.floor(offset) and bool((inside == np.rint(inside)).all()):
        return 1.0, offset
    return max((high - offset) / top, float(np.finfo(np.float32).tiny)), offset


def _part(array: Any, box: tuple[slice, ...]) -> NDArray[Any]:
    """``array[box]``, without what that does for every other kind of index: a tenth of the time of a crop."""
    edges = [part.indices(n)[:2] for part, n in zip(box, array.shape, strict=True)]
    found = np.empty([max(0, stop - start) for start, stop in edges], array.dtype)
    if found.size:
        array.get_slice_numpy(found, tuple(zip(*edges, strict=True)))
    return found


def _parse(payload: bytes, length: int) -> FrameInfo:
    """Check the beginning of a frame of `length` bytes."""
    if length < _HEADER_BYTES or payload[:10] != b"\x9e\xa8b2frame\x00":
        raise CodecError("the payload is not a blosc2 frame")
    (header_bytes,) = struct.unpack_from(">i", payload, 11)
    (frame_bytes,) = struct.unpack_from(">Q", payload, 16)
    if frame_bytes != length or not _HEADER_BYTES <= header_bytes <= min(length, _LONGEST_HEADER):
        raise CodecError(f"the frame says {frame_bytes} bytes, the payload has {length}")
    (nbytes,) = struct.unpack_from(">q", payload, 30)
    (type_bytes,) = struct.unpack_from(">i", payload, 48)
    (chunk_bytes,) = struct.unpack_from(">i", payload, 58)
    if payload[68] != 0xC2:
        raise CodecError("the frame carries variable-length metadata")
    if payload[77] not in _BUILT_IN_CODECS or not set(payload[71:77]) <= _PLAIN_FILTERS:
        raise CodecError("the frame asks for a codec or filter that is not built in")
    info, chunks, blocks = _array_meta(payload, header_bytes)
    # Chunks are stored padded to whole blocks, arrays to whole chunks
    padded = math.prod(-(-c // b) * b for c, b in zip(chunks, blocks, strict=True))
    count = math.prod(-(-n // c) for n, c in zip(info.shape, chunks, strict=True))
    if type_bytes != info.dtype.itemsize or chunk_bytes != padded * type_bytes:
        raise CodecError("the frame's chunks contradict its array")
    if nbytes != count * chunk_bytes or chunk_bytes > MAX_CHUNK_BYTES or math.prod(info.shape) > MAX_VOXELS:
        raise CodecError(f"a volume of shape {info.shape} is larger than allowed or contradicts its frame")
    return info


def _array_meta(payload: bytes, header_bytes: int) -> tuple[FrameInfo, tuple[int, ...], tuple[int, ...]]:
    """Read the one metalayer, ``b2nd``: version, axes, shape, chunks, blocks, dtype."""
    name = payload.find(b"\xa4b2nd\xd2", _HEADER_BYTES, header_bytes)
    if payload[87:88] != b"\x93" or payload[91:94] != b"\xde\x00\x01" or name != 94:
        raise CodecError("the frame is not a plain array")
    (at,) = struct.unpack_from(">i", payload, name + 6)
    if not 0 < at < header_bytes or payload[at] != 0xC6:
        raise CodecError("the frame is not a plain array")
    at += 5
    if payload[at] != 0x97 or payload[at + 2] != 3:
        raise CodecError("the frame is not an array of three axes")
    shape, at = _numbers(payload, at + 3, 0xD3, ">q", 8)
    chunks, at = _numbers(payload, at, 0xD2, ">i", 4)
    blocks, at = _numbers(payload, at, 0xD2, ">i", 4)
    (length,) = struct.unpack_from(">i", payload, at + 2)
    dtype = _DTYPES.get(bytes(payload[at + 6 : at + 6 + length])) if 0 < length < 8 else None
    if payload[at] != 0 or payload[at + 1] != 0xDB or dtype is None:
        raise CodecError("the frame's voxels are neither uint8 nor uint16")
    if not all(0 < b <= c <= max(n, c) and n > 0 for n, c, b in zip(shape, chunks, blocks, strict=True)):
        raise CodecError("the frame's shape is impossible")
    return FrameInfo(shape=(shape[0], shape[1], shape[2]), dtype=dtype), chunks, blocks


def _numbers(payload: bytes, at: int, marker: int, code: str, width: int) -> tuple[tuple[int, ...], int]:
    if payload[at] != 0x93:
        raise CodecError("the frame is not an array of three axes")
    at += 1
    found = []
    for _ in range(3):
        if payload[at] != marker:
            raise CodecError("the frame's shape is impossible")
        found.append(struct.unpack_from(code, payload, at + 1)[0])
        at += 1 + width
    return tuple(found), at
