from __future__ import annotations

import math

import pytest

from fm.config.errors import ConfigError
from fm.config.optim import Decay, OptimConfig
from fm.engine.schedules import learning_rate, teacher_momentum

OPTIM = OptimConfig(
    learning_rate=2.0, final_learning_rate=0.5, warmup_steps=10, teacher_momentum=0.9, final_teacher_momentum=1.0
)


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    assert [learning_rate(OPTIM, step, 200) for step in (0, 4, 9, 10)] == pytest.approx([0.2, 1.0, 2.0, 2.0])


def test_cosine_halves_in_the_middle_and_ends_at_the_final_value() -> None:
    assert learning_rate(OPTIM, 199, 200) == pytest.approx(0.5)
    middle = 10 + (199 - 10) / 2
    assert learning_rate(OPTIM, int(middle), 200) == pytest.approx(1.25, abs=0.01)
    assert learning_rate(OPTIM, 1000, 200) == pytest.approx(0.5)


def test_constant_keeps_the_peak_and_falls_by_a_line_at_the_end() -> None:
    config = OptimConfig(
        learning_rate=2.0, final_learning_rate=0.5, warmup_steps=10, decay=Decay.constant, decay_share=0.25
    )
    rates = [learning_rate(config, step, 200) for step in range(200)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10:150] == [2.0] * 140
    assert rates[150:] == pytest.approx([2.0 - 1.5 * (step + 1) / 50 for step in range(50)])
    assert learning_rate(config, 1000, 200) == 0.5


@pytest.mark.parametrize(("share", "last"), [(0.0, 2.0), (1.0, 0.5)])
def test_the_share_of_the_fall_may_be_nothing_or_all_after_the_warm_up(share: float, last: float) -> None:
    config = OptimConfig(
        learning_rate=2.0, final_learning_rate=0.5, warmup_steps=10, decay=Decay.constant, decay_share=share
    )
    assert learning_rate(config, 9, 200) == 2.0
    assert learning_rate(config, 199, 200) == pytest.approx(last)


def test_a_share_outside_of_its_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"decay_share=1\.5"):
        OptimConfig(decay_share=1.5)


def test_a_short_run_keeps_most_of_its_steps_after_the_warm_up() -> None:
    assert learning_rate(OPTIM, 2, 30) == pytest.approx(2.0)
    assert learning_rate(OPTIM, 0, 5) == pytest.approx(2.0), "too short for any warm-up"
    assert learning_rate(OPTIM, 0, 1) == pytest.approx(0.5)


def test_momentum_rises_by_a_cosine() -> None:
    values = [teacher_momentum(OPTIM, step, 101) for step in (0, 25, 50, 100)]
    assert values == pytest.approx([0.9, 1 - 0.05 * (1 + math.cos(math.pi / 4)), 0.95, 1.0])
