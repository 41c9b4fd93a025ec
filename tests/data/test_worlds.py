"""The same global batches in worlds of any size, each rank in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fm.data.index import Manifest

MakeDataset = Callable[..., str]
Seen = tuple[int, str, float, tuple[str, ...]]
"""Step, study, weight and pixels, in the order of the global batch."""


def world(url: str, size: int, steps: int, start: int = 0, workers: int = 0, order: str = "shuffled") -> list[Seen]:
    """What all ranks of a world saw, put together as global batches."""
    jobs = [
        {"url": url, "world": size, "rank": r, "start": start, "steps": steps, "workers": workers, "order": order}
        for r in range(size)
    ]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.data.world", json.dumps(job)], stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[2],
        )
        for job in jobs
    ]  # fmt: skip
    outputs = [process.communicate()[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0] * size
    lines: list[list[dict[str, Any]]] = [[json.loads(line) for line in out.splitlines()] for out in outputs]
    assert len({len(rank) for rank in lines}) == 1, "every rank takes part in every micro-batch"
    return [
        (part["step"], key, weight, tuple(pixels))
        for turn in zip(*lines, strict=True)
        for part in turn
        for key, weight, pixels in zip(part["keys"], part["weight"], part["pixels"], strict=True)
    ]


def test_two_processes_see_the_batches_of_one_and_a_resumed_run_goes_on(make_dataset: MakeDataset) -> None:
    url = make_dataset(2, 9)
    one = world(url, 1, 8)
    assert [step for step, *_ in one] == [step for step in range(8) for _ in range(4)]
    assert world(url, 2, 8, start=3) == one[12:]


@pytest.mark.full
@pytest.mark.parametrize("order", ["shuffled", "stream"])
def test_worlds_of_1_2_and_4_see_the_same_50_batches_and_step_17_is_step_17(
    make_dataset: MakeDataset, order: str
) -> None:
    url = make_dataset(3, 7)
    one = world(url, 1, 50, order=order)
    assert len(one) == 200 and len({key for _, key, *_ in one}) == 14 and len({pixels for *_, pixels in one}) > 150
    for size in (2, 4):
        assert world(url, size, 50, order=order, workers=size - 2) == one
        assert world(url, size, 50, start=17, order=order) == one[17 * 4 :]


@pytest.mark.full
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_row_25_a_bad_sample_on_one_rank_leaves_a_hole_and_shifts_nothing(
    make_dataset: MakeDataset, workers: int
) -> None:
    url = make_dataset(3, 7)
    good = world(url, 2, 10)
    bad = Manifest.open(url).sample("k11")
    shard = Path(url, bad.shard)
    payload = bytearray(shard.read_bytes())
    payload[bad.members["t1w.b2"].offset + bad.members["t1w.b2"].length // 2] ^= 1
    shard.write_bytes(bytes(payload))
    damaged = world(url, 2, 10, workers=workers)
    assert any(key == "k11" for _, key, *_ in good)
    for want, found in zip(good, damaged, strict=True):
        if want[1] == "k11":
            assert found[:3] == (*want[:2], 0.0), "the hole keeps its place and weighs nothing"
        else:
            assert found == want
