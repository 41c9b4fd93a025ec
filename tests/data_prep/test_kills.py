"""Row 22 under Dask: the run or one of its workers is killed, and the finished output is that of an undisturbed run."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from .test_prepare import PREPARE, contents, run, small_shards

CLONE = Path(__file__).parents[2]


class Runs:
    """Starts preparations of one archive with two workers and kills parts of them."""

    def __init__(self, archive: Path) -> None:
        self.out = archive / "out"
        script = archive / "prepare.py"
        script.write_text(PREPARE.replace("{fault}", ""))
        self.command = [sys.executable, str(script), str(archive), str(archive / "key"), str(self.out), "2"]

    def start(self) -> psutil.Popen:
        return psutil.Popen(self.command, cwd=CLONE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def finish(self) -> None:
        subprocess.run(self.command, cwd=CLONE, check=True)


def workers(process: psutil.Popen) -> list[psutil.Process]:
    """The worker processes of a run."""
    found = process.children(recursive=True)
    return [child for child in found if any("spawn_main" in word for word in child.cmdline())]


def wait_for(path: Path, process: psutil.Popen) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.02)
    assert process.poll() is None, "still at work"


def test_row_22_the_run_is_killed_and_its_workers_end(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(monkeypatch)
    run(archive, "whole")
    runs = Runs(archive)
    process = runs.start()
    wait_for(runs.out / ".work" / "state-000000.json", process)  # the shard is there, and settled
    family = process.children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(family, timeout=60)
    assert [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
    first = (runs.out / "shard-000000.tar").stat().st_mtime_ns
    runs.finish()
    assert contents(runs.out) == contents(archive / "whole")
    assert (runs.out / "shard-000000.tar").stat().st_mtime_ns == first, "a finished shard is not made again"


@pytest.mark.full
@pytest.mark.parametrize("target", ["run", "worker"])
def test_row_22_killed_at_ten_random_points(archive: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    small_shards(monkeypatch)
    run(archive, "whole")
    whole = contents(archive / "whole")
    runs = Runs(archive)
    started = time.monotonic()
    runs.finish()
    seconds = time.monotonic() - started
    shutil.rmtree(runs.out)
    rng, killed = random.Random(0), 0
    while killed < 10:
        process = runs.start()
        time.sleep(rng.uniform(0.2, 1.0) * seconds)
        if process.poll() is None:
            victims = [process] if target == "run" else workers(process)
            if victims:
                killed += 1
                rng.choice(victims).send_signal(signal.SIGKILL)
        if process.wait() == 0:
            assert contents(runs.out) == whole
            shutil.rmtree(runs.out)
        else:
            assert target == "run", "a worker's death is survived"
    runs.finish()
    assert contents(runs.out) == whole
