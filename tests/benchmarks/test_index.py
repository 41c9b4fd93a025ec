"""An index of a million studies: opening it, its memory, and planning batches from it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from fm.config.data import DataConfig, Order
from fm.data.index import Manifest, Shard, write_index
from fm.data.plan import plan_of
from fm.data.table import SampleTable
from tests.benchmarks.measure import peak_mb, table

STUDIES, PER_SHARD, SERIES = 1_000_000, 50, ("t1w", "t2w", "flair", "dwi")


def make_index(folder: Path, studies: int) -> None:
    """An index of so many studies of four series, with shards that are as long as it says and hold nothing."""
    rng = np.random.default_rng(0)
    count = studies // PER_SHARD
    # As fm prepare writes them: in the order of keys that are hashes; patients have two studies each.
    keys = np.sort(rng.choice(2**52, studies, replace=False))
    names = ["json", *(f"{name}.b2" for name in SERIES)]
    length = np.tile([6_000, 2_000_000, 2_500_000, 2_200_000, 1_200_000], studies)
    length += rng.integers(0, 1000, len(length))
    ends = np.cumsum((length + 1024).reshape(count, -1), axis=1)
    offset = (ends - length.reshape(count, -1)).ravel()
    members = pa.ListArray.from_arrays(
        np.arange(0, len(length) + 1, len(names), dtype=np.int32),
        pa.StructArray.from_arrays(
            [
                pa.array(names * studies),
                pa.array(offset),
                pa.array(length),
                pa.array(rng.integers(0, 2**32, len(length))),
            ],
            ["name", "offset", "length", "crc32"],
        ),
    )
    split = np.where(rng.random(studies) < 0.9, "train", "test")
    shards = [f"shard-{i:06d}.tar" for i in range(count)]
    rows = pa.table(
        {
            "key": pa.array([f"s{key:013x}" for key in keys]),
            "patient": pa.array([f"p{key:013x}" for key in keys]),
            "split": pa.array(split),
            "region": pa.array(rng.choice(["head", "abdomen", "spine", "knee"], studies)),
            "shard": pa.array(np.repeat(shards, PER_SHARD)),
            "members": members,
            "labels": pa.array([f'{{"age_group": {i % 9}, "site": "site_{i % 40}"}}' for i in range(studies)]),
        }
    )
    found = []
    for name, end in zip(shards, ends[:, -1].tolist(), strict=True):
        with (folder / name).open("wb") as file:
            file.truncate(end + 1024)
        found.append(Shard(name=name, sha256="0" * 64, bytes=end + 1024, samples=PER_SHARD))
    write_index(str(folder), found, SampleTable(rows), {})


def measure(url: str) -> dict[str, float]:
    """Open an index and plan from it; seconds, and MB at the most."""
    started, cpu = time.perf_counter(), time.process_time()
    manifest = Manifest.open(url)
    found = {"open_s": time.perf_counter() - started, "open_cpu_s": time.process_time() - cpu}
    started = time.perf_counter()
    train = manifest.select(split="train")
    found["select_s"] = time.perf_counter() - started
    variants = {
        "shuffled": DataConfig(),
        "weighted": DataConfig(region_temperature=2.0),
        "stream": DataConfig(order=Order.stream),
    }
    for name, data in variants.items():
        plan = plan_of(train, data, 0)
        started = time.perf_counter()
        plan.batch(0)
        found[f"{name}_epoch_s"] = time.perf_counter() - started
        seconds = []
        for k in range(1, 201):
            started = time.perf_counter()
            plan.batch(k)
            seconds.append(time.perf_counter() - started)
        found[f"{name}_batch_ms"] = 1e3 * float(np.median(seconds))
        found[f"{name}_worst_ms"] = 1e3 * max(seconds)
    started = time.perf_counter()
    for key in train.keys[:: max(1, len(train) // 1000)]:
        train.request(key, "t1w.b2")
    found["request_ms"] = time.perf_counter() - started
    found["peak_mb"] = peak_mb()
    return found


def test_a_million_studies(tmp_path: Path) -> None:
    make_index(tmp_path, STUDIES)
    program = (
        "import json, sys; from tests.benchmarks.test_index import measure; print(json.dumps(measure(sys.argv[1])))"
    )
    runs = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True, timeout=600
        )
        runs.append(json.loads(done.stdout))
    head = ["what", "median", "least–most", "bar"]
    bars = {"open_s": 3, "peak_mb": 1000} | {f"{order}_batch_ms": 5 for order in ("shuffled", "weighted", "stream")}
    rows = []
    for name in runs[0]:
        values = [run[name] for run in runs]
        bar = f"≤ {bars[name]}" if name in bars else ""
        rows.append([name, f"{np.median(values):.3g}", f"{min(values):.3g}–{max(values):.3g}", bar])
    table(f"An index of {STUDIES:,} studies, {5 * STUDIES:,} members", head, rows, ["pyarrow", "numpy"])
    size = (tmp_path / "samples.parquet").stat().st_size
    print(f"samples.parquet: {size / 1e6:.0f} MB; batches of {DataConfig().global_batch_size} studies")
