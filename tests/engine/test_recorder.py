from __future__ import annotations

import logging

import pytest

from fm.engine.recorder import Stragglers


def test_a_rank_that_is_slow_for_long_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    stragglers = Stragglers(4)
    with caplog.at_level(logging.WARNING):
        told = [stragglers.take([1.0, 1.1, 2.0, 0.9]) for _ in range(Stragglers.window)]
    assert told[:-1] == [None] * (Stragglers.window - 1)
    assert told[-1] is not None and "rank 2 is slow: 2.00 s" in told[-1] and "1.00 s" in told[-1]
    assert told[-1] in caplog.text


def test_one_slow_step_and_a_few_milliseconds_are_nothing() -> None:
    stragglers = Stragglers(2)
    busy = [[1.0, 1.0]] * 40 + [[1.0, 9.0]] * 10
    assert all(stragglers.take(seconds) is None for seconds in busy)
    small = Stragglers(2)
    assert all(small.take([0.01, 0.05]) is None for _ in range(50))
