"""Real processes: one is stopped, the other waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fm.engine.phases import Phases
from fm.engine.watchdog import Watchdog

RANK = """
import sys, time
from pathlib import Path
from fm.engine.phases import Phases
from fm.engine.watchdog import Watchdog

run_dir, rank, waits = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "waits"
phases = Phases()
report = lambda message: (run_dir / f"report-{rank}").write_text(message)
watchdog = Watchdog(run_dir, rank=rank, attempt="7", timeout_s=2.0, phases=phases, report=report)
watchdog.start()
phases.enter("backward")
print("ready", flush=True)

def in_a_collective_that_never_ends():
    while True:
        time.sleep(0.05)
        if not waits:
            phases.enter("forward")

in_a_collective_that_never_ends()
"""


def start(run_dir: Path, rank: int, kind: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", RANK, str(run_dir), str(rank), kind], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def stack_of(run_dir: Path, rank: int) -> str:
    return (run_dir / "stacks" / f"attempt-7-rank-{rank:05d}.txt").read_text()


def test_row_43_a_stopped_rank_is_found_and_all_stacks_are_dumped(tmp_path: Path) -> None:
    stopped, waiting = start(tmp_path, 1, "works"), start(tmp_path, 0, "waits")
    stopped.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    assert waiting.wait(60) == 1
    assert time.monotonic() - began < 30
    assert stopped.wait(60) == -signal.SIGKILL
    message = (tmp_path / "report-0").read_text()
    assert (
        "phase 'backward' of rank 0" in message
        and "rank 1 (in phase '" in message
        and "gives no sign of life" in message
    )
    for rank in (0, 1):
        assert "in_a_collective_that_never_ends" in stack_of(tmp_path, rank)


def test_a_rank_that_works_is_left_alone_and_one_that_is_stuck_is_not(tmp_path: Path) -> None:
    working, stuck = start(tmp_path, 0, "works"), start(tmp_path, 1, "waits")
    assert stuck.wait(60) == 1
    assert "every rank is alive" in (tmp_path / "report-1").read_text()
    assert working.poll() is None and "in_a_collective_that_never_ends" in stack_of(tmp_path, 1)
    working.kill()
    working.wait()


def test_a_run_without_a_hang_leaves_nothing_behind(tmp_path: Path) -> None:
    watchdog = Watchdog(tmp_path, rank=0, attempt="1", timeout_s=60.0, phases=Phases(), report=print)
    watchdog.start()
    assert list((tmp_path / "heartbeats" / "attempt-1").glob("rank-00000.json"))
    watchdog.stop()
    watchdog.stop()
    assert not list(tmp_path.iterdir())


def test_the_stopped_rank_itself_does_not_accuse_the_others(tmp_path: Path) -> None:
    """Two seconds without progress have passed when it wakes, but it was away."""
    process = start(tmp_path, 0, "waits")
    process.send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    process.send_signal(signal.SIGCONT)
    time.sleep(1.0)
    assert process.poll() is None
    process.kill()
    process.wait()
