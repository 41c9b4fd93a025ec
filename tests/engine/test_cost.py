from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fm.engine import cost
from fm.engine.cost import CostMeter, Usage
from fm.engine.energy import NoCounterError


class NoPackages:
    def __init__(self) -> None:
        raise NoCounterError("this machine shows no energy counters of its processor")


class Package:
    """A counter that has counted 3.6 MJ, and later breaks."""

    works = True

    def joules(self) -> float:
        if not self.works:
            raise OSError("gone")
        return 3.6e6


@pytest.fixture
def meter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CostMeter:
    monkeypatch.setattr(cost, "RaplCounter", NoPackages)
    monkeypatch.setattr(cost, "SAMPLE_SECONDS", 0.02)
    monkeypatch.setenv("LOCAL_RANK", "0")
    return CostMeter(tmp_path, "1", rank=0, ranks=2, on_gpu=False)


def rank_1(cpu_seconds: float, host_gb: float) -> Usage:
    return Usage(cpu_seconds=cpu_seconds, host_gb=host_gb, device_gb=math.nan, gpu_joules=math.nan, package_joules=0.0)


def transposed(*ranks: Usage) -> list[list[float]]:
    return [list(values) for values in zip(*(usage.vector() for usage in ranks), strict=True)]


def test_processor_time_and_memory_of_loaders_count(meter: CostMeter) -> None:
    before = meter.usage()
    held = bytearray(os.urandom(1)) * (150 << 20)
    code = f"b = bytearray({150 << 20}); print('ready', flush=True); sum(range(10**7)); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 60
    while (during := meter.usage()).cpu_seconds < before.cpu_seconds + 0.2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert during.host_gb > before.host_gb + 0.25, "this process and its child hold 150 MiB each"
    del held
    child.communicate("\n")
    time.sleep(0.1)  # the loader is looked for anew
    after = meter.usage()
    assert after.cpu_seconds >= during.cpu_seconds - 0.02, "a loader that ended is not forgotten"
    assert after.host_gb >= during.host_gb, "the peak stays"
    assert math.isnan(after.device_gb) and math.isnan(after.gpu_joules)
    meter.close()


def test_the_account_says_what_was_measured_and_what_was_not(meter: CostMeter, tmp_path: Path) -> None:
    mine = meter.usage()
    meter.take(5, transposed(mine, mine))
    meter.take(7, transposed(mine, rank_1(3600.0 - mine.cpu_seconds, 9.0)))
    meter.close()
    kept = json.loads((tmp_path / "cost/attempt-1.json").read_text())
    assert (kept["unit"], kept["first_step"], kept["step"]) == ("CPU core", 5, 7)
    assert kept["cpu_hours"] == pytest.approx(1.0)
    assert kept["peak_host_gb"] == 9.0
    assert kept["device_hours"] == pytest.approx(kept["wall_s"] * kept["devices"] / 3600)
    assert kept["not_measured"] == {
        "gpu_kwh": "no GPU was used",
        "package_kwh": "this machine shows no energy counters of its processor",
        "peak_device_gb": "no GPU was used",
    }


def test_an_attempt_that_is_killed_has_an_account_already(meter: CostMeter, tmp_path: Path) -> None:
    path = tmp_path / "cost/attempt-1.json"
    deadline = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    kept = json.loads(path.read_text())
    assert kept["wall_s"] > 0 and kept["not_measured"]["cpu_hours"] == "no step was logged"
    meter.take(1, transposed(meter.usage()))
    assert json.loads(path.read_text())["cpu_hours"] > 0, "the first step is in it at once"
    meter.close()


def test_a_counter_that_breaks_is_told_of_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counter = Package()
    monkeypatch.setattr(cost, "RaplCounter", lambda: counter)
    monkeypatch.setenv("LOCAL_RANK", "0")
    meter = CostMeter(tmp_path, "1", rank=0, ranks=1, on_gpu=False)
    meter.take(1, transposed(meter.usage()))
    counter.works = False
    assert math.isnan(meter.usage().package_joules) and math.isnan(meter.usage().package_joules)
    assert caplog.text.count("energy is not measured any more") == 1
    meter.close()
    assert json.loads((tmp_path / "cost/attempt-1.json").read_text())["package_kwh"] == pytest.approx(1.0)
