from __future__ import annotations

import os
import signal

import pytest

from fm.engine.signals import STOP_SIGNALS, StopFlag


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_sets_the_flag_and_nothing_else(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    flag = StopFlag()
    flag.install()
    try:
        assert not flag.is_set
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert flag.received is number
    finally:
        flag.restore()
    assert {each: signal.getsignal(each) for each in STOP_SIGNALS} == before


def test_taking_over_twice_keeps_the_flag_and_restores_the_first_handlers() -> None:
    before = signal.getsignal(signal.SIGTERM)
    flag = StopFlag()
    flag.install()
    os.kill(os.getpid(), signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: None)  # what Lightning does
    flag.install()
    assert flag.is_set
    flag.restore()
    assert signal.getsignal(signal.SIGTERM) is before
