"""Asynchronous saving: the state is copied on the main thread, a background thread only writes files."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from fm.config.errors import UserError
from fm.engine.checkpoint import Checkpoints
from fm.engine.snapshot import Snapshot
from fm.parallel.collectives import any_flag, broadcast_object, rank, world_size

log = logging.getLogger(__name__)
_LAST_SECONDS = 10.0
"""What a save in flight gets when the run fails: longer would only keep the others waiting for a rank that is gone."""


class Saver:
    """Saves checkpoints, at most one at a time; :meth:`start` and :meth:`finish` are collectives of the main threads.

    Each rank's thread writes its own files and leaves a mark; rank 0's thread commits when all marks are there. Thus
    no thread ever waits in a collective, and a rank that cannot write is told of by the main threads.
    """

    def __init__(self, store: Checkpoints[Any], step: int, device: Callable[[], torch.device | str]) -> None:
        """Prepare.

        Args:
            store: the run's checkpoints.
            step: the step that is on disk already.
            device: where flags that ranks agree on live.
        """
        self._store = store
        self._device = device
        self._write: _Write | None = None
        self.saved_step = step
        """The newest step that is known to be committed."""

    @property
    def failed(self) -> bool:
        """Whether this rank could not write the save in flight; tell the others, then call :meth:`finish`."""
        return self._write is not None and self._write.failed

    def start(self, step: int, total_bytes: int, capture: Callable[[], Snapshot]) -> None:
        """Copy the state and begin to write it; waits for a save in flight first.

        Where the disk refuses, the run goes on and earlier checkpoints are as they were.

        Args:
            step: steps completed.
            total_bytes: what all ranks are going to write.
            capture: copies this rank's state; may be a collective.
        """
        self.finish()
        place = broadcast_object(self._begin(step, total_bytes) if rank() == 0 else None)
        if place is not None:
            self._write = _Write(self._store, step, place, capture())
            self._write.start()

    def finish(self) -> None:
        """Wait until the save in flight is committed, or known to have failed."""
        if self._write is None:
            return
        write, self._write = self._write, None
        write.written.wait()
        if any_flag(write.failed, self._device()):
            write.abandoned.set()
        write.join()
        if not any_flag(rank() == 0 and not write.committed, self._device()):
            self.saved_step = write.step

    def leave(self) -> None:
        """Give a save in flight the time to end, on this rank alone: for a run that fails. No collective."""
        if self._write is not None:
            self._write.join(_LAST_SECONDS)

    def _begin(self, step: int, total_bytes: int) -> Any:
        try:
            return self._store.begin(step, total_bytes)
        except OSError as err:
            log.error("checkpoint at step %d not written, training goes on: %s", step, err)
            return None


class _Write(threading.Thread):
    """The writing of one save on one rank."""

    def __init__(self, store: Checkpoints[Any], step: int, place: Any, snapshot: Snapshot) -> None:
        super().__init__(name=f"save-step-{step}", daemon=True)
        self.step = step
        self.failed = False
        self.committed = False
        self.written = threading.Event()
        self.abandoned = threading.Event()
        self._store = store
        self._place = place
        self._snapshot: Snapshot | None = snapshot
        self._rank, self._ranks = rank(), world_size()

    def run(self) -> None:
        """Write, and on rank 0 commit."""
        started = time.perf_counter()
        try:
            if self._snapshot is not None:
                self._store.write(self._place, self._snapshot, self._rank)
            self._snapshot = None  # its memory is free while rank 0 hashes
        except Exception as err:  # whatever it is, the others must not wait for this rank's mark
            self._fail(err)
        finally:
            self.written.set()
        if self._rank != 0:
            return
        try:
            if not self.failed and self._all_written():
                self._store.commit(self.step, self._place)
                self.committed = True
                log.info("step %d saved in the background in %.1f s", self.step, time.perf_counter() - started)
        except Exception as err:
            self._fail(err)
        finally:
            if not self.committed:
                with contextlib.suppress(UserError, OSError):  # what it leaves behind the next save removes
                    self._store.discard(self.step)

    def _all_written(self) -> bool:
        while not self._store.all_written(self._place, self._ranks):
            if self.abandoned.wait(self._store.look_seconds):
                return False
        return True

    def _fail(self, err: Exception) -> None:
        log.error("checkpoint at step %d not written, training goes on: %s", self.step, err)
        self.failed = True
