from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from fm.engine.trainer import Stream


def test_micro_batches_of_a_step_come_together_and_nothing_is_read_early() -> None:
    read: list[int] = []

    def micros() -> Iterator[Any]:
        for number in range(6):
            read.append(number)
            yield number

    stream = Stream(micros(), 2)
    iter(stream)  # Lightning's first look
    steps = iter(stream)
    assert read == []
    assert next(steps) == [0, 1] and read == [0, 1]
    assert list(steps) == [[2, 3], [4, 5]]


def test_waiting_for_data_is_measured() -> None:
    def slow() -> Iterator[Any]:
        time.sleep(0.05)
        yield 0

    stream = Stream(slow(), 1)
    assert next(iter(stream)) == [0]
    assert stream.wait_seconds >= 0.05
