from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from fm.engine.account import AttemptCost, read_cost


def test_attempts_add_up_and_one_that_could_not_measure_is_named(tmp_path: Path) -> None:
    assert read_cost(tmp_path) == {}
    (tmp_path / "cost").mkdir()
    for attempt, kwh in (("2", 0.5), ("10", None), ("1", 0.25)):
        account = AttemptCost(
            attempt=attempt,
            unit="GPU",
            devices=4,
            wall_s=1800.0,
            device_hours=2.0,
            cpu_hours=1.0,
            gpu_kwh=kwh,
            package_kwh=0.1,
            peak_host_gb=float(attempt),
            peak_device_gb=60.0,
            not_measured={} if kwh else {"gpu_kwh": "no driver"},
        )
        (tmp_path / f"cost/attempt-{attempt}.json").write_text(json.dumps(asdict(account)))
    (tmp_path / "cost/attempt-11.json").write_text('{"torn')
    found = read_cost(tmp_path)
    assert [account["attempt"] for account in found["attempts"]] == ["1", "2", "10"]
    total = found["total"]
    assert total["device_hours"] == {"GPU": 6.0} and total["wall_s"] == 5400.0
    assert total["package_kwh"] == pytest.approx(0.3) and total["peak_host_gb"] == 10.0
    assert total["gpu_kwh"] == 0.75 and total["not_measured"] == {"gpu_kwh": "no driver (attempt 10)"}
