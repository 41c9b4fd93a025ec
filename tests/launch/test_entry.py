from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fm.config.errors import UserError
from fm.config.launch import LaunchConfig, LocalLaunch
from fm.engine.verdict import Outcome, Verdict, write_verdict
from launch import entry
from launch.entry import Topology, WorkerError, topology, torchrun
from launch.worker import record_error


@pytest.mark.parametrize(
    ("launch", "gpus", "cores", "expected"),
    [
        (LocalLaunch(), 0, 2, (2, 1)),
        (LocalLaunch(), 0, 1, (1, 1)),
        (LocalLaunch(), 0, 16, (2, 8)),
        (LocalLaunch(), 8, 64, (8, 8)),
        (LocalLaunch(processes=3), 8, 16, (3, 5)),
        (LocalLaunch(processes=1, threads_per_process=7), 0, 2, (1, 7)),
    ],
)
def test_topology(launch: LocalLaunch, gpus: int, cores: int, expected: tuple[int, int]) -> None:
    found = topology(launch, gpus, cores)
    assert (found.processes, found.threads) == expected


def test_other_kinds_of_launch_are_refused() -> None:
    with pytest.raises(UserError, match=r"use fm submit"):
        topology(LaunchConfig(kind="slurm"), 0, 2)


def test_torchrun_is_told_of_every_stop_signal_and_of_the_lead() -> None:
    command = torchrun(Topology(processes=2, threads=1), 90, ["-m", "launch.worker", "RUN"])
    assert "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1" in command and "--shutdown-timeout=90" in command
    assert command[-3:] == ["-m", "launch.worker", "RUN"] and "--max-restarts=0" in command


@pytest.mark.parametrize(("outcome", "code"), [(Outcome.DONE, 0), (Outcome.REQUEUE, 75)])
def test_the_verdict_decides_whatever_torchrun_says(outcome: Outcome, code: int, tmp_path: Path) -> None:
    write_verdict(tmp_path, Verdict(attempt="2", outcome=outcome, step=5))
    assert entry._exit_code(tmp_path, "2", 1) == code


def test_without_a_verdict_zero_is_no_success(tmp_path: Path) -> None:
    write_verdict(tmp_path, Verdict(attempt="1", outcome=Outcome.DONE, step=5))
    with pytest.raises(WorkerError, match=r"were killed.*if it happens again, lower this"):
        entry._exit_code(tmp_path, "2", 0, "lower this")


def test_the_first_failure_is_told_and_a_refusal_comes_before_its_echoes(tmp_path: Path) -> None:
    record_error(tmp_path, "1", "1", RuntimeError("Connection closed\nby peer"))
    with pytest.raises(WorkerError, match=r"^rank 1: RuntimeError: Connection closed by peer \(traceback in"):
        entry._exit_code(tmp_path, "1", 1)
    record_error(tmp_path, "1", "0", UserError("the reason"))
    with pytest.raises(WorkerError, match=r"^the reason$"):
        entry._exit_code(tmp_path, "1", 1)


def test_rows_are_followed_across_a_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    rows = entry._follow(path)
    assert next(rows) == [], "what was there before is not shown again"
    with path.open("a") as stream:
        stream.write('{"step": 3}\n{"ste')
    assert next(rows) == [{"step": 3}]
    with path.open("a") as stream:
        stream.write('p": 4}\nnoise\n')
    assert next(rows) == [{"step": 4}]
    path.write_text('{"step": 1}\n')  # a resumed attempt cuts the file back to its checkpoint
    assert next(rows) == []
    with path.open("a") as stream:
        stream.write('{"step": 2}\n')
    assert next(rows) == [{"step": 2}]


def test_notices_are_those_of_rank_0_and_our_own_rooms() -> None:
    line = "2026-01-01 10:00:00,1 WARNING rank 0 fm.engine.callbacks: step 4 skipped"
    found = entry._NOTICE.search(line)
    assert found is not None and found[1] == "step 4 skipped"
    assert not entry._NOTICE.search(line.replace("rank 0", "rank 1"))
    assert not entry._NOTICE.search(line.replace("fm.engine.callbacks", "torch.nn"))


def test_the_launching_process_loads_no_torch() -> None:
    """It waits beside the workers for days: it shall be small."""
    code = "import sys, launch.verbs.pretrain, launch.verbs.export; print(json.dumps('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", f"import json; {code}"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False


def test_a_stop_before_anyone_listened_asks_to_be_run_again(tmp_path: Path) -> None:
    assert entry._exit_code(tmp_path, "1", -15, stopped=True) == 75
    record_error(tmp_path, "1", "1", RuntimeError("Connection closed by peer"))
    assert entry._exit_code(tmp_path, "1", 1, stopped=True) == 75
    record_error(tmp_path, "1", "0", UserError("no data there"))
    with pytest.raises(WorkerError, match="no data there"):
        entry._exit_code(tmp_path, "1", 1, stopped=True)
