from __future__ import annotations

from pathlib import Path

from fm.engine.metrics import MetricLog, read_metrics


def test_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricLog(path, 0)
    for step in range(1, 6):
        first.write({"step": step, "loss": 1.0 / step})
    first.close()
    with path.open("a") as stream:
        stream.write('{"step": 6, "lo')  # killed in mid-write
    second = MetricLog(path, 3)
    second.write({"step": 4, "loss": 9.0})
    second.close()
    rows = read_metrics(path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["loss"] == 9.0


def test_rows_are_on_disk_at_once_and_valid_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricLog(path, 0)
    log.write({"step": 1, "loss": float("nan"), "gradient_norm": float("inf"), "applied": False})
    assert read_metrics(path) == [{"step": 1, "loss": None, "gradient_norm": None, "applied": False}]
    assert "NaN" not in path.read_text()
