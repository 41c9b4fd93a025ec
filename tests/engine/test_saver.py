from __future__ import annotations

import logging
import resource
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fm.engine import checkpoint
from fm.engine.checkpoint import CheckpointStore
from fm.engine.saver import Saver
from fm.engine.snapshot import Snapshot


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep_last=3)


@pytest.fixture
def saver(store: CheckpointStore) -> Saver:
    return Saver(store, 0, lambda: "cpu")


def snapshot(value: float, rows: int = 4) -> Snapshot:
    taken = Snapshot()
    taken.add("weights.safetensors", {"weight": torch.full((rows,), value)}, {"about": "a test"})
    taken.texts["model/config.json"] = "{}"
    return taken


def test_files_are_written_behind_the_trainers_back(
    store: CheckpointStore, saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step goes on while the files are written; the state is that of the moment it was taken."""
    may_write, real = threading.Event(), Snapshot.write

    def slow(taken: Snapshot, folder: Path) -> None:
        assert may_write.wait(30)
        real(taken, folder)

    monkeypatch.setattr(Snapshot, "write", slow)
    weight = torch.ones(3)

    def capture() -> Snapshot:
        taken = Snapshot()
        taken.add("weights.safetensors", {"weight": weight})
        return taken

    saver.start(1, 100, capture)
    assert store.steps() == [] and not saver.failed
    weight.fill_(7.0)
    may_write.set()
    saver.finish()
    assert store.steps() == [1] and saver.saved_step == 1
    assert load_file(store.verify(1) / "weights.safetensors")["weight"].tolist() == [1.0, 1.0, 1.0]


def test_one_save_is_in_flight_at_most(store: CheckpointStore, saver: Saver, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, most, real = 0, 0, Snapshot.write

    def counted(taken: Snapshot, folder: Path) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        real(taken, folder)
        at_once -= 1

    monkeypatch.setattr(Snapshot, "write", counted)
    for step in range(1, 5):
        saver.start(step, 100, lambda: snapshot(1.0))
    saver.finish()
    assert most == 1 and store.steps() == [2, 3, 4]


def test_row_40_a_full_disk_is_told_and_the_old_checkpoint_stays(
    store: CheckpointStore, saver: Saver, caplog: pytest.LogCaptureFixture
) -> None:
    """The operating system itself refuses to write: the largest size of a file is set below that of the tensors."""
    saver.start(1, 100, lambda: snapshot(1.0))
    saver.finish()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with caplog.at_level(logging.ERROR):
            saver.start(2, 100, lambda: snapshot(2.0, rows=100_000))
            saver.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "checkpoint at step 2 not written, training goes on" in caplog.text
    assert saver.saved_step == 1 and store.steps() == [1] and not list(store.root.glob("*.tmp"))
    saver.start(3, 100, lambda: snapshot(3.0, rows=100_000))
    saver.finish()
    assert saver.saved_step == 3


def test_space_is_looked_at_before_a_save(
    store: CheckpointStore, saver: Saver, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    free = shutil.disk_usage(tmp_path).free
    with caplog.at_level(logging.ERROR):
        saver.start(1, free + 2**30, lambda: pytest.fail("the state is not even copied"))
    saver.finish()
    assert "MB are needed" in caplog.text and "MB free" in caplog.text and "trainer.keep_last" in caplog.text
    assert saver.saved_step == 0 and not list(store.root.glob("*.tmp"))


def test_a_disk_that_will_be_full_soon_is_told_of(
    store: CheckpointStore, saver: Saver, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage._replace(free=250_000_000))
    with caplog.at_level(logging.WARNING):
        saver.start(1, 100_000_000, lambda: snapshot(1.0))
    saver.finish()
    assert "room for 2 more checkpoints" in caplog.text and store.steps() == [1]


def test_a_run_that_fails_leaves_its_save_time_to_end(
    store: CheckpointStore, saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Snapshot.write

    def slow(taken: Snapshot, folder: Path) -> None:
        time.sleep(0.3)
        real(taken, folder)

    monkeypatch.setattr(Snapshot, "write", slow)
    saver.start(1, 100, lambda: snapshot(1.0))
    saver.leave()
    assert store.steps() == [1]
