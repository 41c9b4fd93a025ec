"""Dask's workers: on this machine, at a scheduler's address, or as Slurm jobs.

Dask repeats a job by itself where a worker dies; here it may not: jobs that stood beside the one that killed it would
be suspected too. The first death is told (``allowed-failures: 0``) and :class:`data_prep.pool.Workers` finds out which
job it was. Nothing that Dask logs or shows holds a header: jobs travel in a parcel that tells nothing about itself.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import dask
import distributed
from distributed.client import FutureCancelledError
from distributed.comm import CommClosedError

from data_prep.pool import WorkerDiedError, Workers, limit_process
from fm.config.errors import UserError
from fm.config.prepare import LOCAL, SLURM, PrepareConfig

Job = TypeVar("Job")
Result = TypeVar("Result")
_PATIENCE_S = 60.0
"""How long a worker may be sought before it is said that there is none."""
_HERE = ("127.0.0.1", "localhost", "::1")


@dataclass(slots=True)
class _Parcel:
    """A function and its job on their way to a worker."""

    function: Callable[[Any], Any]
    job: Any

    def __repr__(self) -> str:
        return "job"


@dataclass(slots=True)
class _Answer:
    """What became of a parcel; an error is no error to Dask, which would log the job with it."""

    result: Any = None
    error: Exception | None = None

    def __repr__(self) -> str:
        return "answer"


class _Limits(distributed.WorkerPlugin):  # type: ignore[misc]  # distributed has no types
    """Settings of every worker that belongs to this run."""

    name = "fm-limits"

    def __init__(self, memory_limit_gib: float) -> None:
        self.memory_limit_gib = memory_limit_gib

    def setup(self, worker: Any) -> None:
        """Called in each worker as it starts."""
        limit_process(self.memory_limit_gib)


class DaskWorkers(Workers):
    """Workers of a Dask cluster, which starts with the first job.

    Args:
        config: where they run, and their limits.
        count: processes, where the cluster is ours.
        private: folder for the certificates and logs of Slurm jobs.
    """

    def __init__(self, config: PrepareConfig, count: int, private: Path) -> None:
        super().__init__(config.studies_in_flight, config.worker_retries)
        self.config = config
        self.wanted = max(1, count)
        self.private = private
        self._client: Any = None
        self._cluster: Any = None
        self._sent = 0

    @property
    def count(self) -> int:
        """Jobs that the workers known by now run at once; those that are wanted before the first is there."""
        if self._client is None or self.config.cluster in (LOCAL, SLURM):
            return self.wanted
        return max(1, int(sum(self._client.nthreads().values())))

    def stop(self) -> None:
        """End the cluster where it is ours; give its jobs up where it is not."""
        for part in (self._client, self._cluster):
            if part is not None:
                part.close()
        self._client = self._cluster = None

    def _submit(self, function: Callable[[Job], Result], job: Job) -> Any:
        if self._client is None:
            self._start()
        self._sent += 1
        # the number keeps Dask from taking equal jobs for one
        return self._client.submit(_open, _Parcel(function, job), key=f"fm-{self._sent}", pure=False)

    def _result(self, handle: Any) -> Any:
        told = False
        while True:
            try:
                answer: _Answer = handle.result(timeout=_PATIENCE_S)
                break
            except distributed.TimeoutError:
                if not told and not self._client.nthreads():
                    print("no Dask worker is there; waiting for one", file=sys.stderr, flush=True)
                    told = True
            except distributed.scheduler.KilledWorker:
                raise WorkerDiedError from None
            except (CommClosedError, FutureCancelledError, OSError):
                raise UserError(
                    f"the Dask scheduler of prepare.cluster={self.config.cluster} went away; run the same command "
                    "again once it is back, it goes on"
                ) from None
        if answer.error is not None:
            raise answer.error
        return answer.result

    def _quiet(self, handles: list[Any]) -> None:
        for handle in handles:
            handle.exception()  # waits for it

    def _kept(self, function: Callable[[Job], Result], job: Job, handle: Any) -> Any:
        return handle

    def _start(self) -> None:
        dask.config.set(
            {
                "distributed.scheduler.allowed-failures": 0,
                "distributed.comm.timeouts.connect": "120s",
                # Dask's threshold makes glibc give memory back after each array: half as much again of CPU time here
                "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
                "distributed.worker.profile.enabled": False,
                "distributed.admin.system-monitor.interval": "10s",
            }
        )
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        where = self.config.cluster
        if where == LOCAL:
            self._cluster = distributed.LocalCluster(
                n_workers=self.wanted,
                threads_per_worker=1,
                processes=True,
                memory_limit=0,  # the address space is bounded: Dask's own limits spill, pause and kill
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
            )
        elif where == SLURM:
            self._cluster = slurm_cluster(self.config, self.private)
            self._cluster.scale(jobs=self.wanted)
        elif urlsplit(where).scheme == "tcp" and urlsplit(where).hostname not in _HERE:
            print(
                f"prepare.cluster={where}: headers and the key travel unencrypted; use a tls:// address where others "
                "share the network",
                file=sys.stderr,
            )
        try:
            self._client = distributed.Client(self._cluster or where, set_as_default=False, timeout="60s")
        except (OSError, ValueError) as err:
            raise UserError(
                f"prepare.cluster={where}: no Dask scheduler answers there ({type(err).__name__}); write local, slurm, "
                "or the address that dask scheduler printed, like tcp://host:8786"
            ) from None
        if self._cluster is not None:
            self._client.register_plugin(_Limits(self.config.memory_limit_gib))


def slurm_cluster(config: PrepareConfig, private: Path) -> Any:
    """A cluster whose workers are Slurm jobs of one process each; what else they need stands in Dask's jobqueue.yaml.

    Connections are encrypted by certificates made for this run, which lie in `private` and must be readable from the
    nodes.
    """
    from dask_jobqueue import SLURMCluster

    private.mkdir(parents=True, exist_ok=True, mode=0o700)
    return SLURMCluster(
        queue=config.slurm_partition or None,
        account=config.slurm_account or None,
        walltime=config.slurm_walltime,
        cores=1,
        processes=1,
        memory=f"{config.memory_limit_gib}GiB",
        worker_extra_args=["--memory-limit", "0", "--no-dashboard"],
        protocol="tls://",
        security=True,
        shared_temp_directory=str(private),
        log_directory=str(private),
        scheduler_options={"dashboard_address": None},
        silence_logs=logging.CRITICAL,
    )


def _open(parcel: _Parcel) -> _Answer:
    """Run a job; in a worker."""
    try:
        return _Answer(result=parcel.function(parcel.job))
    except Exception as err:
        return _Answer(error=err)
