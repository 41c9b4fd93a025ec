"""Worker processes whose results come back in order, and whose death costs one job, not the run."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import TypeVar

from data_prep.headers import silence_pydicom

Job = TypeVar("Job")
Result = TypeVar("Result")


class Workers:
    """A pool of fresh processes (spawned: the caller may hold threads and libraries that do not survive a fork).

    Args:
        count: processes.
        memory_limit_gib: address space of each.
    """

    def __init__(self, count: int, memory_limit_gib: float) -> None:
        self.count = max(1, count)
        self.memory_limit_gib = memory_limit_gib
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def ordered(
        self, function: Callable[[Job], Result], jobs: Iterable[Job], died: Callable[[Job], Result]
    ) -> Iterator[Result]:
        """Results of `function` over `jobs`, in the order of the jobs; at most four jobs a worker are under way.

        When a process is killed (by the memory killer, or a fault in C code), the first waiting job runs again with
        nobody beside it; if its process dies once more its result is ``died(job)``, and the others go on.
        """
        window: deque[tuple[Job, Future[Result]]] = deque()
        waiting = iter(jobs)
        while True:
            while len(window) < 4 * self.count and (job := next(waiting, None)) is not None:
                window.append((job, self._submit(function, job)))
            if not window:
                return
            job, future = window.popleft()
            try:
                result = future.result()
            except BrokenProcessPool:
                self._stop()
                result = self._alone(function, job, died)
                window = deque((later, self._submit(function, later)) for later, _ in window)
            yield result

    def _alone(self, function: Callable[[Job], Result], job: Job, died: Callable[[Job], Result]) -> Result:
        try:
            return self._submit(function, job).result()
        except BrokenProcessPool:
            self._stop()
            return died(job)

    def _submit(self, function: Callable[[Job], Result], job: Job) -> Future[Result]:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                max_workers=self.count,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_initialise,
                initargs=(self.memory_limit_gib,),
            )
        try:
            return self._pool.submit(function, job)
        except BrokenProcessPool:
            # found broken before its turn: the waiting results will say so
            failed: Future[Result] = Future()
            failed.set_exception(BrokenProcessPool())
            return failed

    def _stop(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


def _initialise(memory_limit_gib: float) -> None:
    """Settings of a worker: bounded memory, no header text in warnings, interrupts left to the parent, no afterlife."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    silence_pydicom()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    limit = int(memory_limit_gib * 2**30)
    with contextlib.suppress(ValueError, OSError):  # not every system bounds address space
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for its next job for ever: each holds the queue's other end open."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
