from __future__ import annotations

import time

import pytest

from fm.engine.phases import Phases


def test_time_goes_to_the_phase_that_was_left() -> None:
    phases = Phases()
    phases.enter("forward")
    time.sleep(0.03)
    phases.enter("backward")
    time.sleep(0.01)
    phases.enter("forward")
    time.sleep(0.03)
    taken = phases.take()
    assert taken["forward"] >= 0.06 and 0.01 <= taken["backward"] < 0.05
    assert phases.current == "forward"
    assert phases.take()["forward"] == pytest.approx(0.0, abs=0.02), "taken once"
