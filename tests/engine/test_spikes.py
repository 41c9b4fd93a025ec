from __future__ import annotations

import math
import random

from fm.engine.spikes import SpikeGuard


def test_row_42_six_sigma_is_a_spike_and_a_fall_is_none() -> None:
    rng = random.Random(0)
    guard = SpikeGuard(6.0, 50)
    for _ in range(50):
        loss = rng.gauss(10.0, 0.5)
        assert not guard.is_spike(loss)
        guard.take(loss)
    assert not guard.is_spike(12.0) and not guard.is_spike(0.0)
    assert guard.is_spike(14.0)


def test_before_the_window_is_full_nothing_is_a_spike() -> None:
    guard = SpikeGuard(6.0, 3)
    guard.take(1.0)
    guard.take(1.1)
    assert not guard.is_spike(100.0)
    guard.take(0.9)
    assert guard.is_spike(100.0)


def test_only_what_was_stepped_on_counts_and_the_window_survives() -> None:
    guard = SpikeGuard(6.0, 3)
    for loss in (1.0, 1.2, 0.8, math.nan, 1.1):
        guard.take(loss)
    assert guard.losses == [1.2, 0.8, 1.1]
    other = SpikeGuard(6.0, 3)
    other.restore(guard.losses)
    assert other.losses == guard.losses and other.is_spike(50.0)


def test_zero_turns_it_off() -> None:
    guard = SpikeGuard(0.0, 2)
    for loss in (1.0, 1.0, 1.0):
        guard.take(loss)
    assert not guard.is_spike(1e9) and guard.losses == []
