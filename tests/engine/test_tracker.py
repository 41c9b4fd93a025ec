from __future__ import annotations

import platform
from pathlib import Path

import pytest
import wandb

from fm.config.tracker import TrackerConfig, WandbMode
from fm.engine.tracker import Tracker


def test_row_47_offline_run_holds_the_metrics_and_nothing_of_the_machine(tmp_path: Path) -> None:
    run = tmp_path / "some_run"
    run.mkdir()
    tracker = Tracker(TrackerConfig(wandb=WandbMode.offline), run, "3")
    tracker.log({"step": 1, "quite_unlikely_name": 0.5, "attempt": "3"})
    tracker.close()
    (written,) = (run / "wandb").glob("offline-run-*/*.wandb")
    payload = written.read_bytes()
    assert b"quite_unlikely_name" in payload and b"some_run-3" in payload
    for secret in (platform.node(), str(tmp_path), str(Path(__file__).parents[2]), "requirements.txt"):
        assert secret.encode() not in payload, secret


def test_row_47_a_tracker_that_fails_does_not_stop_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.setattr(wandb, "init", broken)
    tracker = Tracker(TrackerConfig(wandb=WandbMode.online), tmp_path, "1")
    tracker.log({"step": 1, "loss": 1.0})
    tracker.close()


def test_row_47_a_tracker_that_breaks_later_is_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Run:
        def log(self, row: object, step: int) -> None:
            calls.append(step)
            raise OSError("disk full")

        def finish(self) -> None:
            raise OSError("disk full")

    monkeypatch.setattr(wandb, "init", lambda **_: Run())
    tracker = Tracker(TrackerConfig(wandb=WandbMode.offline), tmp_path, "1")
    tracker.log({"step": 1})
    tracker.log({"step": 2})
    tracker.close()
    assert calls == [1]


def test_off_writes_nothing(tmp_path: Path) -> None:
    tracker = Tracker(TrackerConfig(wandb=WandbMode.off), tmp_path, "1")
    tracker.log({"step": 1})
    tracker.close()
    assert not list(tmp_path.iterdir())
