"""Worker processes whose results come back in order, and whose death costs one job, not the run.

:class:`Workers` says how; :class:`Processes` are processes of this machine that start in a second, and
:class:`data_prep.cluster.DaskWorkers` are Dask's, here or on a cluster.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from data_prep.headers import silence_pydicom
from fm.config.prepare import LOCAL, PrepareConfig

Job = TypeVar("Job")
Result = TypeVar("Result")


class WorkerDiedError(Exception):
    """The process that ran a job was killed, or ran beside one that was."""


class Workers(ABC):
    """Processes that run jobs.

    Args:
        in_flight: jobs under way at once for each process; what is done waits for its turn, so this bounds memory.
        retries: how often a job whose process died is tried again with nobody beside it.
    """

    def __init__(self, in_flight: int, retries: int) -> None:
        self.in_flight = in_flight
        self.retries = retries

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def ordered(
        self, function: Callable[[Job], Result], jobs: Iterable[Job], died: Callable[[Job], Result]
    ) -> Iterator[Result]:
        """Results of `function` over `jobs`, in the order of the jobs, which are taken as there is room for them.

        When a process is killed (by the memory killer, or a fault in C code), the first waiting job runs again with
        nobody beside it; if its process dies each time its result is ``died(job)``, and the others go on.
        """
        window: deque[tuple[Job, Any]] = deque()
        waiting = iter(jobs)
        while True:
            while len(window) < self.in_flight * self.count and (job := next(waiting, None)) is not None:
                window.append((job, self._submit(function, job)))
            if not window:
                return
            job, handle = window.popleft()
            try:
                result = self._result(handle)
            except WorkerDiedError:
                self._quiet([later for _, later in window])
                result = self._alone(function, job, died)
                window = deque((later, self._kept(function, later, handle)) for later, handle in window)
            del handle
            yield result

    def _alone(self, function: Callable[[Job], Result], job: Job, died: Callable[[Job], Result]) -> Result:
        for _ in range(self.retries):
            try:
                found: Result = self._result(self._submit(function, job))
                return found
            except WorkerDiedError:
                self._quiet([])
        return died(job)

    @property
    @abstractmethod
    def count(self) -> int:
        """Processes."""

    @abstractmethod
    def stop(self) -> None:
        """End the processes."""

    @abstractmethod
    def _submit(self, function: Callable[[Job], Result], job: Job) -> Any:
        """A handle of the job's result."""

    @abstractmethod
    def _result(self, handle: Any) -> Any:
        """Wait for a result.

        Raises:
            WorkerDiedError: the process died.
        """

    @abstractmethod
    def _quiet(self, handles: list[Any]) -> None:
        """Return once nothing runs; what the handles stand for may be given up."""

    @abstractmethod
    def _kept(self, function: Callable[[Job], Result], job: Job, handle: Any) -> Any:
        """The handle of a job after :meth:`_quiet`, submitted again if it was given up."""


class Processes(Workers):
    """A pool of fresh processes (spawned: the caller may hold threads and libraries that do not survive a fork).

    Args:
        count: processes.
        memory_limit_gib: address space of each.
        in_flight, retries: see :class:`Workers`.
    """

    def __init__(self, count: int, memory_limit_gib: float, in_flight: int = 4, retries: int = 1) -> None:
        super().__init__(in_flight, retries)
        self._count = max(1, count)
        self.memory_limit_gib = memory_limit_gib
        self._pool: ProcessPoolExecutor | None = None

    @property
    def count(self) -> int:
        """Processes."""
        return self._count

    def stop(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

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

    def _result(self, handle: Future[Result]) -> Result:
        try:
            return handle.result()
        except BrokenProcessPool:
            raise WorkerDiedError from None

    def _quiet(self, handles: list[Future[Any]]) -> None:
        self.stop()

    def _kept(self, function: Callable[[Job], Result], job: Job, handle: Future[Result]) -> Future[Result]:
        return self._submit(function, job)


def open_workers(config: PrepareConfig, count: int, private: Path) -> Workers:
    """The processes that a configuration asks for: Dask's, or where one on this machine is enough, a plain one.

    Args:
        config: where they run, and their limits.
        count: processes, on this machine or as Slurm jobs.
        private: folder beside the key, for what a cluster writes about its workers.
    """
    if config.cluster == LOCAL and count <= 1:
        return Processes(count, config.memory_limit_gib, config.studies_in_flight, config.worker_retries)
    # a second of imports that a small job does not wait for
    from data_prep.cluster import DaskWorkers

    return DaskWorkers(config, count, private)


def limit_process(memory_limit_gib: float) -> None:
    """Settings of a worker: bounded memory, no header text in warnings, interrupts left to the parent."""
    with contextlib.suppress(ValueError):  # outside the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    silence_pydicom()
    limit = int(memory_limit_gib * 2**30)
    with contextlib.suppress(ValueError, OSError):  # not every system bounds address space
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _initialise(memory_limit_gib: float) -> None:
    """A worker of :class:`Processes`; it has no afterlife."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    limit_process(memory_limit_gib)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for its next job for ever: each holds the queue's other end open."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
