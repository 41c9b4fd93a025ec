from __future__ import annotations

import pickle
import struct

import blosc2
import numpy as np
import pytest

from fm.data import codec
from fm.data.codec import CodecError, decode_volume, encode_codes, encode_volume, read_header


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 5000, (19, 150, 131)).astype(np.float32)


def restored(encoded: codec.EncodedVolume) -> np.ndarray:
    return decode_volume(encoded.payload).astype(np.float64) * encoded.scale + encoded.offset


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_error_is_at_most_half_a_step_and_reported(volume: np.ndarray, bits: int) -> None:
    encoded = encode_volume(volume, bits=bits)
    error = np.abs(restored(encoded) - volume).max()
    assert error <= 0.5001 * encoded.scale
    assert encoded.max_error == pytest.approx(error, rel=1e-3)
    assert encoded.scale == pytest.approx(float(volume.max()) / (2**bits - 1), rel=1e-6)


def test_whole_numbers_are_exact() -> None:
    values = np.random.default_rng(1).integers(0, 4096, (5, 40, 30)).astype(np.float32)
    encoded = encode_volume(values)
    assert (encoded.scale, encoded.offset, encoded.max_error) == (1.0, 0.0, 0.0)
    assert (restored(encoded) == values).all()


def test_negative_values_keep_their_offset() -> None:
    values = np.linspace(-300, 700, 4 * 8 * 8).reshape(4, 8, 8)
    encoded = encode_volume(values, bits=16)
    assert encoded.offset == -300
    assert np.abs(restored(encoded) - values).max() <= 0.51 * encoded.scale


def test_stored_zero_is_air_and_nothing_else(volume: np.ndarray) -> None:
    air = np.zeros(volume.shape, dtype=bool)
    air[:, :40] = True
    volume[:, 60:70] = 0.0
    stored = decode_volume(encode_volume(volume, air).payload)
    assert ((stored == 0) == air).all()


def test_a_crop_equals_the_same_part_of_the_whole(volume: np.ndarray) -> None:
    payload = encode_volume(volume).payload
    whole = decode_volume(payload)
    rng = np.random.default_rng(2)
    for _ in range(10):
        start = [int(rng.integers(0, n - 1)) for n in volume.shape]
        box = tuple(slice(a, int(rng.integers(a + 1, n + 1))) for a, n in zip(start, volume.shape, strict=True))
        assert (decode_volume(payload, box) == whole[box]).all()  # type: ignore[arg-type]


def test_a_crop_decodes_without_the_rest(volume: np.ndarray) -> None:
    """Damage in a far chunk does not reach a crop: its bytes are never looked at."""
    payload = bytearray(encode_volume(volume).payload)
    whole = decode_volume(bytes(payload))
    for at in range(len(payload) - 4000, len(payload) - 2500):
        payload[at] ^= 0xFF
    near = (slice(0, 8), slice(0, 64), slice(0, 64))
    assert (decode_volume(bytes(payload), near) == whole[near]).all()


def test_equal_volumes_give_equal_bytes(volume: np.ndarray) -> None:
    assert encode_volume(volume).payload == encode_volume(volume.copy()).payload


def test_header_is_read_without_decoding(volume: np.ndarray) -> None:
    info = read_header(encode_volume(volume).payload)
    assert info.shape == volume.shape
    assert info.dtype == np.dtype("<u2")
    assert read_header(encode_volume(volume, bits=8).payload).dtype == np.dtype("u1")


def test_label_maps_survive() -> None:
    labels = np.random.default_rng(0).integers(0, 5, (3, 20, 20)).astype(np.uint8)
    assert (decode_volume(encode_codes(labels)) == labels).all()


@pytest.mark.parametrize("shape", [(0, 3, 3), (3, 3), (2, 2, 2, 2)])
def test_what_is_no_volume_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(CodecError):
        encode_volume(np.zeros(shape, dtype=np.float32))


def test_not_finite_is_refused(volume: np.ndarray) -> None:
    volume[0, 0, 0] = np.inf
    with pytest.raises(CodecError, match="NaN or infinite"):
        encode_volume(volume)


def test_every_cut_payload_is_refused(volume: np.ndarray) -> None:
    payload = encode_volume(volume).payload
    for length in (*range(0, 200, 7), len(payload) // 2, len(payload) - 1):
        with pytest.raises(CodecError):
            decode_volume(payload[:length])


def test_a_volume_that_claims_too_much_is_refused_before_anything_is_allocated(volume: np.ndarray) -> None:
    payload = bytearray(encode_volume(volume).payload)
    at = payload.index(b"\xd3" + struct.pack(">q", 19))
    payload[at + 1 : at + 9] = struct.pack(">q", 2**40)
    with pytest.raises(CodecError, match=r"larger than allowed|contradict"):
        decode_volume(bytes(payload))


def test_a_bomb_of_zeros_is_refused() -> None:
    """A few hundred bytes that say 2 GB."""
    huge = blosc2.zeros((1024, 1024, 1024), dtype=np.uint16, chunks=(16, 1024, 1024), blocks=(4, 64, 64))
    payload = huge.to_cframe()
    assert len(payload) < 10_000
    with pytest.raises(CodecError, match="larger than allowed"):
        decode_volume(payload)


def test_metadata_beside_the_array_is_refused() -> None:
    """blosc2 can carry pickles and code there; nothing of it is ever read."""
    array = blosc2.asarray(np.ones((4, 8, 8), dtype=np.uint16))
    array.schunk.vlmeta["x"] = pickle.dumps(print)
    with pytest.raises(CodecError, match="metadata"):
        decode_volume(array.to_cframe())
    with_layer = blosc2.asarray(np.ones((4, 8, 8), dtype=np.uint16), meta={"other": 1})
    with pytest.raises(CodecError):
        decode_volume(with_layer.to_cframe())


@pytest.mark.parametrize("dtype", ["f4", "i8", "S4", "u4"])
def test_other_voxel_types_are_refused(dtype: str) -> None:
    with pytest.raises(CodecError):
        decode_volume(blosc2.asarray(np.ones((4, 8, 8), dtype=dtype)).to_cframe())


@pytest.mark.parametrize(
    "junk", [b"", b"\x80\x04K\x01.", b"\x9e\xa8b2frame\x00", b"\x9e\xa8b2frame\x00" + b"\xff" * 300]
)
def test_junk_is_refused(junk: bytes) -> None:
    with pytest.raises(CodecError):
        decode_volume(junk)


def test_random_damage_of_the_header_never_escapes_as_another_error(volume: np.ndarray) -> None:
    payload = encode_volume(volume[:6, :30, :30]).payload
    rng = np.random.default_rng(3)
    for _ in range(300):
        broken = bytearray(payload)
        for at in rng.integers(0, 184, 2):
            broken[at] = rng.integers(256)
        try:
            found = read_header(bytes(broken))
        except CodecError:
            continue
        assert np.prod(found.shape) <= codec.MAX_VOXELS
