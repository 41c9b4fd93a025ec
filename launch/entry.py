"""Our entrypoint around torchrun: starts workers, passes signals on, shows progress, turns verdicts into exit codes.

torchrun loses the workers' exit codes (75 becomes 1), dies of SIGUSR1 unless told, and kills workers 30 s after
SIGTERM unless told.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from fm.config.errors import UserError
from fm.config.launch import LaunchConfig, LocalLaunch
from fm.engine.failures import ERRORS
from fm.engine.metrics import Row
from fm.engine.progress import ProgressView
from fm.engine.signals import REQUEUE_EXIT_CODE, STOP_SIGNALS
from fm.engine.verdict import Outcome, read_verdict
from launch.events import NAME as EVENTS
from launch.worker import ATTEMPT, die_with_parent

LOCK = "lock"
METRICS = "metrics.jsonl"
_POLL_SECONDS = 0.5
_NOTICE = re.compile(r"(?:WARNING|ERROR|INFO) rank 0 fm\.(?:engine|pretrain|adapt)[.\w]*: (.+)")
"""Records of the workers that also belong on the terminal: resume, fallbacks, skipped steps, failed saves."""


class WorkerError(UserError):
    """Workers that ended without finishing; the message is that of the rank that failed first."""


@dataclass(kw_only=True, slots=True)
class Topology:
    """Processes on this machine, CPU threads of each, and the other machines of the run."""

    processes: int
    threads: int
    nodes: int = 1
    rank: int = 0
    """Number of this machine among `nodes`."""
    master: str = ""
    """Name of machine 0, at which the workers meet."""
    port: int = 0
    """TCP port of that; one machine alone picks a free one."""


def topology(launch: LaunchConfig, gpus: int, cores: int) -> Topology:
    """What a launch configuration means on a machine with so many GPUs and CPU cores.

    Raises:
        UserError: a kind of launch that starts no local processes.
    """
    if not isinstance(launch, LocalLaunch):
        raise UserError(
            f"launch={launch.kind}: this verb starts processes on this machine; use fm submit verb=pretrain …"
        )
    processes = launch.processes or gpus or min(2, max(1, cores))
    return Topology(processes=processes, threads=launch.threads_per_process or max(1, cores // processes))


def run_workers(
    run_dir: Path, *, attempt: str, place: Topology, signal_lead_s: int, max_steps: int, advice: str
) -> int:
    """Run the workers of one attempt to their end.

    Args:
        run_dir: run folder with ``run.yaml``.
        attempt: name of the attempt.
        place: processes and threads.
        signal_lead_s: seconds that workers get between a stop signal and the kill.
        max_steps: steps of the whole run, for the progress view.
        advice: what to do where the workers are killed for memory.

    Of several machines each calls it; the first one holds the folder, shows the progress and knows the end.

    Returns:
        0 when the run is done, 75 when it was stopped and should be run again; on machines but the first torchrun's own
        code.

    Raises:
        WorkerError: the workers failed, or were killed.
        UserError: another process trains in this folder.
    """
    command = torchrun(place, signal_lead_s, ["-m", "launch.worker", str(run_dir)])
    threads = str(place.threads)
    environment = {
        **os.environ,
        ATTEMPT: attempt,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    if place.rank:
        with open(run_dir / f"events-node-{place.rank}.log", "ab") as events:
            process = _start(command, environment, events)
            with _forwarded(process):
                return process.wait()
    with _locked(run_dir), open(run_dir / EVENTS, "ab") as events, ProgressView(max_steps) as view:
        process = _start(command, environment, events)
        rows, notices = _follow(run_dir / METRICS), _follow_lines(run_dir / EVENTS)
        with _forwarded(process) as forwarded:
            while process.poll() is None:
                _show(view, rows, notices)
                _wait(process)
        _show(view, rows, notices)
    return _exit_code(run_dir, attempt, process.returncode, advice, stopped=bool(forwarded))


def torchrun(place: Topology, signal_lead_s: int, worker: Sequence[str]) -> list[str]:
    """The torchrun command of one machine; alone, its port is free because torchrun picks it.

    Several machines have fixed ranks: rank 0, which writes the verdict, must be on the machine that reads it.
    """
    alone = ["--standalone", "--local-addr=127.0.0.1"]
    together = [
        f"--nnodes={place.nodes}",
        f"--node-rank={place.rank}",
        f"--master-addr={place.master}",
        f"--master-port={place.port}",
    ]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *(alone if place.nodes == 1 else together),
        f"--nproc-per-node={place.processes}",
        "--max-restarts=0",
        "--signals-to-handle=" + ",".join(number.name for number in STOP_SIGNALS),
        f"--shutdown-timeout={signal_lead_s}",
        *worker,
    ]


def _start(command: list[str], environment: dict[str, str], events: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=events,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )


def _exit_code(run_dir: Path, attempt: str, returncode: int, advice: str = "", stopped: bool = False) -> int:
    verdict = read_verdict(run_dir, attempt)
    if verdict is not None and verdict.outcome is Outcome.DONE:
        return 0
    if verdict is not None and verdict.outcome is Outcome.REQUEUE:
        return REQUEUE_EXIT_CODE
    failures = [json.loads(path.read_text()) for path in (run_dir / ERRORS).glob(f"attempt-{attempt}-rank-*.json")]
    if stopped and not any(failure["refused"] for failure in failures):
        # The signal came before the workers could listen, or they were killed while saving: nothing committed is lost.
        return REQUEUE_EXIT_CODE
    if not failures:
        raise WorkerError(
            f"the workers were killed (torchrun ended with {returncode}), perhaps for memory: give run={run_dir} alone "
            f"to resume; if it happens again, {advice}; details in {run_dir / EVENTS}"
        )
    # A refusal comes from all ranks; else the others only report that the first one is gone.
    first = min(failures, key=lambda failure: (not failure["refused"], failure["time"]))
    where = "" if first["refused"] else f"rank {first['rank']}: "
    more = "" if first["refused"] else f" (traceback in {run_dir / EVENTS})"
    raise WorkerError(f"{where}{first['message']}{more}")


@contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    """Hold the run folder: two attempts at once would ruin each other's checkpoints."""
    with open(run_dir / LOCK, "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            raise UserError(
                f"run={run_dir}: another process is training in this folder; wait for it, or stop it"
            ) from err
        yield


@contextmanager
def _forwarded(process: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Pass stop signals on to torchrun, which passes them on to the workers; yields the signals that came."""
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if process.poll() is None:
            process.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return


def _show(view: ProgressView, rows: Iterator[list[Row]], notices: Iterator[list[str]]) -> None:
    """Hand on what is new: the metrics, and what rank 0 has to say to a person."""
    for line in next(notices):
        if found := _NOTICE.search(line):
            view.note(found[1])
    for row in next(rows):
        view.update(row)


def _follow(path: Path) -> Iterator[list[Row]]:
    """At each turn the rows that were added to metrics.jsonl since the last."""
    for lines in _follow_lines(path):
        found: list[Row] = []
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                found.append(row)
        yield found


def _follow_lines(path: Path) -> Iterator[list[str]]:
    """At each turn the complete lines that were added since the last; what stands there at first is left out."""
    position = path.stat().st_size if path.exists() else 0
    while True:
        lines: list[str] = []
        if path.exists():
            # A resumed attempt first cuts rows past its checkpoint, so the file may have become shorter.
            position = min(position, path.stat().st_size)
            with open(path, "rb") as stream:
                stream.seek(position)
                chunk = stream.read()
            complete = chunk[: chunk.rfind(b"\n") + 1]
            position += len(complete)
            lines = complete.decode("utf-8", errors="replace").splitlines()
        yield lines
