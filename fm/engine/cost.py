"""Measures what an attempt costs: hours, energy and memory of every rank."""

from __future__ import annotations

import json
import logging
import math
import os
import resource
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from fm.engine.account import COST, AttemptCost
from fm.engine.energy import NoCounterError, NvmlCounter, RaplCounter
from fm.engine.verdict import write_atomically

log = logging.getLogger(__name__)

SAMPLE_SECONDS = 5.0
"""Between two looks at the loaders, and between two writes: a killed attempt loses no more of its account."""
JOULES_PER_KWH = 3.6e6


@dataclass(kw_only=True, slots=True)
class Usage:
    """What one rank used since its process began; NaN where it cannot be measured."""

    cpu_seconds: float
    """Of processors, by this process and its loaders."""
    host_gb: float
    """Most memory that this process and its loaders held at once; shared pages count in each."""
    device_gb: float
    """Most memory that torch reserved on this rank's GPU."""
    gpu_joules: float
    package_joules: float
    """Of this machine's processors, counted by its first rank; 0 on the others."""

    def vector(self) -> list[float]:
        """The fields in order, for one sum over ranks in which each has a place of its own."""
        return [self.cpu_seconds, self.host_gb, self.device_gb, self.gpu_joules, self.package_joules]


class CostMeter:
    """Samples what this rank uses in a thread; on rank 0 it also keeps the account of the attempt."""

    def __init__(self, run_dir: Path, attempt: str, *, rank: int, ranks: int, on_gpu: bool) -> None:
        """Find the counters and begin.

        Args:
            run_dir: the run folder.
            attempt: name of the attempt.
            rank: this process.
            ranks: all processes.
            on_gpu: whether ranks compute on a GPU each; else on as many cores as they have threads.
        """
        self._process = psutil.Process()
        self._begin = self._process.create_time()
        self._missing: dict[str, str] = {}
        self._gpu = self._counter("gpu_kwh", lambda: NvmlCounter(_gpu_uuid())) if on_gpu else None
        self._first = os.environ.get("LOCAL_RANK", "0") == "0"
        self._package = self._counter("package_kwh", RaplCounter) if self._first else None
        if not on_gpu:
            self._missing |= {"gpu_kwh": "no GPU was used", "peak_device_gb": "no GPU was used"}
        self._on_gpu = on_gpu
        self._peak_host, self._loaders_seconds, self._looked = 0.0, 0.0, -math.inf
        self._ranks: list[list[float]] = []
        self._path = run_dir / COST / f"attempt-{attempt}.json" if rank == 0 else None
        devices = ranks if on_gpu else ranks * torch.get_num_threads()
        self._cost = AttemptCost(attempt=attempt, unit="GPU" if on_gpu else "CPU core", devices=devices)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="cost", daemon=True)
        self._thread.start()

    def usage(self) -> Usage:
        """What this rank used so far."""
        with self._lock:
            if time.monotonic() - self._looked > SAMPLE_SECONDS:
                self._look()
            return Usage(
                cpu_seconds=self._cpu_seconds(),
                host_gb=self._peak_host,
                device_gb=torch.cuda.max_memory_reserved() / 2**30 if self._on_gpu else math.nan,
                gpu_joules=self._read("gpu_kwh", self._gpu),
                package_joules=self._read("package_kwh", self._package) if self._first else 0.0,
            )

    def take(self, step: int, ranks: Sequence[Sequence[float]]) -> None:
        """Take in what all ranks used up to a step: their vectors, transposed (rank 0)."""
        self._cost.step, self._ranks = step, [list(values) for values in ranks]
        if not self._cost.first_step:
            self._cost.first_step = step
            self._write()

    def close(self) -> None:
        """End the sampling and write the account."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        self._write()

    def _watch(self) -> None:
        self._write()
        while not self._ended.wait(SAMPLE_SECONDS):
            with self._lock:
                self._look()
            self._write()

    def _look(self) -> None:
        """Find this rank's loaders: their memory and time; every process of the machine is looked at for it."""
        self._looked, held, spent = time.monotonic(), 0, 0.0
        for process in self._family():
            try:
                held += process.memory_info().rss
                times = process.cpu_times()
            except psutil.Error:
                continue  # it ended meanwhile
            spent += times.user + times.system if process != self._process else 0.0
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        self._peak_host = max(self._peak_host, held / 2**30, own)
        self._loaders_seconds = spent

    def _family(self) -> list[psutil.Process]:
        try:
            return [self._process, *self._process.children()]
        except psutil.Error:
            return [self._process]

    def _cpu_seconds(self) -> float:
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + ended.ru_utime + ended.ru_stime + self._loaders_seconds

    def _counter(self, name: str, make: Any) -> Any:
        try:
            return make()
        except NoCounterError as err:
            self._missing[name] = str(err)
            return None

    def _read(self, name: str, counter: Any) -> float:
        if counter is None:
            return math.nan
        try:
            return float(counter.joules())
        except Exception as err:
            # A counter that breaks must not end a training run, whatever its driver raises.
            log.warning("energy is not measured any more: %s", err)
            self._missing[name] = f"the counter failed during the attempt: {err}"
            setattr(self, "_gpu" if counter is self._gpu else "_package", None)
            return math.nan

    def _write(self) -> None:
        if self._path is None:
            return
        with self._lock:
            self._write_to(self._path)

    def _write_to(self, path: Path) -> None:
        cost = self._cost
        cost.wall_s = round(time.time() - self._begin, 1)
        cost.device_hours = cost.wall_s * cost.devices / 3600
        if self._ranks:
            cpu, host, device, gpu, package = self._ranks
            cost.cpu_hours = sum(cpu) / 3600
            cost.peak_host_gb = max(host)
            cost.peak_device_gb = _known(max(device))
            cost.gpu_kwh = _known(sum(gpu) / JOULES_PER_KWH)
            cost.package_kwh = _known(sum(package) / JOULES_PER_KWH)
        cost.not_measured = {name: self._why(name) for name, value in asdict(cost).items() if value is None}
        try:
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, (json.dumps(asdict(cost), indent=1) + "\n").encode())
        except OSError as err:
            log.warning("the cost of the attempt could not be written: %s", err)

    def _why(self, name: str) -> str:
        return self._missing.get(name) or ("another rank could not" if self._ranks else "no step was logged")


def _gpu_uuid() -> str:
    return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
