from __future__ import annotations

import platform
import resource
import signal
import socket
from pathlib import Path

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

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
    for secret in (str(tmp_path), str(Path(__file__).parents[2]), "requirements.txt"):
        assert secret.encode() not in payload, secret
    # A short host name may turn up in a random id: as a value it follows its length, or a quotation mark.
    host = platform.node().encode()
    assert bytes([len(host)]) + host not in payload and b'"' + host not in payload


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


def read_scalars(run: Path, name: str) -> list[tuple[int, float]]:
    """What TensorBoard itself would show."""
    accumulator = EventAccumulator(str(run / "tensorboard"))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(name)]


def test_a_resumed_attempt_repeats_no_step_in_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "name-of-the-host")
    config = TrackerConfig(wandb=WandbMode.off, tensorboard=True)
    for attempt, completed, last in (("9", 0, 5), ("10", 3, 6)):
        tracker = Tracker(config, tmp_path, attempt, completed)
        for step in range(completed + 1, last + 1):
            tracker.log({"step": step, "loss": float(10 * int(attempt) + step), "applied": True, "attempt": attempt})
        if attempt == "10":  # the first one was killed: its file was never closed
            tracker.close()
    assert read_scalars(tmp_path, "loss") == [(1, 91.0), (2, 92.0), (3, 93.0), (4, 104.0), (5, 105.0), (6, 106.0)]
    for file in (tmp_path / "tensorboard").iterdir():
        assert "name-of-the-host" not in file.name
        for secret in ("name-of-the-host", str(tmp_path)):
            assert secret.encode() not in file.read_bytes()


def test_row_47_a_full_disk_switches_tensorboard_off_and_wandb_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(TrackerConfig(wandb=WandbMode.offline, tensorboard=True), tmp_path, "1")
    tracker.log({"step": 1, "first_name": 1.0})
    (file,) = (tmp_path / "tensorboard").iterdir()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A file that is as long as files may be now: as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size, limits[1]))
    try:
        tracker.log({"step": 2, "second_name": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    tracker.log({"step": 3, "third_name": 1.0})
    tracker.close()
    assert caplog.text.count("TensorBoard is off from step 2 on") == 1
    (written,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert b"third_name" in written.read_bytes()
    assert b"third_name" not in file.read_bytes()


def test_row_47_tensorboard_that_cannot_start_does_not_stop_training(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    tracker = Tracker(TrackerConfig(wandb=WandbMode.off, tensorboard=True), tmp_path, "1")
    tracker.log({"step": 1, "loss": 1.0})
    tracker.close()


def test_off_writes_nothing(tmp_path: Path) -> None:
    tracker = Tracker(TrackerConfig(wandb=WandbMode.off), tmp_path, "1")
    tracker.log({"step": 1})
    tracker.close()
    assert not list(tmp_path.iterdir())
