"""Finds a hang: a rank that is stopped, stuck or lost, for which all others would wait in a collective for ever."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from fm.config.errors import UserError
from fm.engine.phases import Phases

log = logging.getLogger(__name__)

HEARTBEATS = "heartbeats"
STACKS = "stacks"
SAVING = "save"
"""The phase that may last: a large checkpoint takes longer than any step."""
_DUMP = signal.SIGUSR2
_DUMP_SECONDS = 0.5
"""What a stopped process gets to dump its stacks in, before it is killed."""
_EXIT_CODE = 1


class HangError(UserError):
    """A run in which nothing moved any more."""


@dataclass(kw_only=True, slots=True)
class Sign:
    """A rank's sign of life."""

    rank: int
    host: str
    pid: int
    born: float
    """Start of the process, so that a number used again is not taken for it."""
    phase: str
    time: float
    """Seconds since the epoch."""


class Watchdog:
    """A thread on every rank that looks at the rank's own progress and, once that stands still, for silent ranks.

    It gives a sign of life in the run folder; a stopped process gives none, one that waits in a collective does. Found
    a hang, it dumps the stacks of all ranks (``stacks/attempt-A-rank-R.txt``), tells which rank is to blame and ends
    the process: the main thread sits in a collective that cannot be interrupted.
    """

    def __init__(
        self, run_dir: Path, *, rank: int, attempt: str, timeout_s: float, phases: Phases, report: Callable[[str], None]
    ) -> None:
        """Prepare.

        Args:
            run_dir: the run folder, the same for all ranks.
            rank: this process.
            attempt: name of the attempt.
            timeout_s: seconds without progress.
            phases: this rank's progress.
            report: called with the message before the process ends.
        """
        self._rank, self._attempt, self._timeout = rank, attempt, timeout_s
        self._phases, self._report = phases, report
        self._signs = run_dir / HEARTBEATS / f"attempt-{attempt}"
        self._sign_file = self._signs / f"rank-{rank:05d}.json"
        self._stacks = run_dir / STACKS / f"attempt-{attempt}-rank-{rank:05d}.txt"
        self._tick = min(5.0, timeout_s / 5)
        self._born = psutil.Process().create_time()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._signs.mkdir(parents=True, exist_ok=True)
        self._stacks.parent.mkdir(exist_ok=True)
        self._file = open(self._stacks, "w", encoding="utf-8")  # noqa: SIM115 - the signal handler writes to it
        faulthandler.register(_DUMP, file=self._file, all_threads=True)
        self._give_sign()
        self._thread.start()

    def stop(self) -> None:
        """End the watch; what it left in the run folder without a hang is removed."""
        if not self._thread.is_alive():
            return
        self._ended.set()
        self._thread.join()
        faulthandler.unregister(_DUMP)
        self._file.close()
        if self._stacks.stat().st_size == 0:
            self._stacks.unlink()
        self._sign_file.unlink(missing_ok=True)
        for folder in (self._signs, self._signs.parent, self._stacks.parent):
            with contextlib.suppress(OSError):  # another rank's, or another attempt's, still lie there
                folder.rmdir()

    def _watch(self) -> None:
        woken, pardon = time.monotonic(), 0.0
        while not self._ended.wait(self._tick):
            now = time.monotonic()
            if now - woken > self._timeout / 2:
                pardon = now  # it was this process that was stopped: the others are not late
            woken = now
            self._give_sign()
            stalled = now - max(self._phases.since, pardon)
            if stalled > self._timeout:
                silent = self._silent()
                if silent or self._phases.current != SAVING:
                    self._end(stalled, silent)

    def _give_sign(self) -> None:
        sign = Sign(
            rank=self._rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            born=self._born,
            phase=self._phases.current,
            time=time.time(),
        )
        partial = self._sign_file.with_suffix(".tmp")
        with contextlib.suppress(OSError):  # a full disk is no hang
            partial.write_text(json.dumps(asdict(sign)), encoding="utf-8")
            partial.replace(self._sign_file)

    def _silent(self) -> list[Sign]:
        signs = [Sign(**json.loads(path.read_text(encoding="utf-8"))) for path in sorted(self._signs.glob("*.json"))]
        return [sign for sign in signs if time.time() - sign.time > max(3 * self._tick, 0.5 * self._timeout)]

    def _end(self, stalled: float, silent: list[Sign]) -> None:
        message = f"no progress for {stalled:.0f} s in phase {self._phases.current!r} of rank {self._rank}: "
        if silent:
            lost = ", ".join(f"rank {sign.rank} (in phase {sign.phase!r})" for sign in silent)
            message += f"{lost} gives no sign of life, stopped or lost"
        else:
            message += "every rank is alive"
        message += (
            f"; the stacks of all ranks are in {STACKS}/ of the run folder; run again to resume from the last "
            f"checkpoint, or raise trainer.hang_timeout_s={self._timeout:g} if steps may take that long"
        )
        log.error("%s", message)
        self._report(message)
        faulthandler.dump_traceback(self._file, all_threads=True)
        local = [sign for sign in silent if _is_here(sign)]
        for sign in local:
            # The order matters: a stopped process dumps its stacks as the first thing when it goes on.
            os.kill(sign.pid, _DUMP)
            os.kill(sign.pid, signal.SIGCONT)
        time.sleep(_DUMP_SECONDS)
        for sign in local:
            if _is_here(sign):
                os.kill(sign.pid, signal.SIGKILL)
        # The watchdogs of the ranks that are alive have noticed the same and dump in this time.
        time.sleep(2 * self._tick)
        os._exit(_EXIT_CODE)


def _is_here(sign: Sign) -> bool:
    """Whether the process of a sign runs on this machine still."""
    if sign.host != socket.gethostname():
        return False
    try:
        return bool(abs(psutil.Process(sign.pid).create_time() - sign.born) < 1.0)
    except psutil.Error:
        return False
