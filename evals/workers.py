"""Work on a frozen encoder, shared among the cores of this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from evals.frozen import FrozenEncoder

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_workers(encoder: FrozenEncoder, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """`work` on each item, results in the order of the items.

    On CPU every core takes whole items with one thread of its own: many small operations gain nothing from threads that
    wait for each other, and on a busy machine lose most of their time to it; also, results do not depend on the
    number of cores. On another device, one item at a time.
    """
    if encoder.device.type != "cpu":
        yield from map(work, items)
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = max(1, min(cores, len(items)))
    with (
        threadpool_limits(limits=1),
        ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        yield from pool.map(work, items)
