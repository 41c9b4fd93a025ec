"""Timing in turns, medians with their spread, and the versions that a figure belongs to."""

from __future__ import annotations

import gc
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import psutil


@dataclass(slots=True)
class Timing:
    """Seconds of several rounds, by the clock and of processors, those of child processes included."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def cpu_median(self) -> float:
        return statistics.median(self.cpu_seconds)

    def rate(self, work: float) -> str:
        """Work per second: median, and from the slowest to the fastest round."""
        low, high = work / max(self.seconds), work / min(self.seconds)
        return f"{work / self.median:.3g} ({low:.3g}–{high:.3g})"


def steady(ways: Mapping[str, Callable[[], Iterable[object]]], warm: int, steps: int, rounds: int) -> dict[str, Timing]:
    """Time `steps` items of each way's iterator after `warm` others: start-up, of processes above all, is not counted.

    One way runs at a time, once a round; what it had fetched ahead when the clock started, it has when it stops.
    """
    found = {name: Timing() for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            gc.collect()
            items = iter(way())
            for _ in range(warm):
                next(items)
            started, cpu = time.perf_counter(), _cpu()
            for _ in range(steps):
                next(items)
            found[name].seconds.append(time.perf_counter() - started)
            found[name].cpu_seconds.append(_cpu() - cpu)
            del items
    return found


def memory_mb() -> tuple[float, float]:
    """Memory of this process and its children in 10⁶ bytes: all that is resident, and without what files back."""
    own = psutil.Process()
    infos = [process.memory_info() for process in (own, *own.children(recursive=True))]
    return sum(i.rss for i in infos) / 1e6, sum(i.rss - i.shared for i in infos) / 1e6


def in_turns(actions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time each action once a round, one after the other, so that a busy moment of the machine hits all alike."""
    found = {name: Timing() for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            gc.collect()  # what went before is not paid for now
            started, cpu = time.perf_counter(), _cpu()
            action()
            found[name].seconds.append(time.perf_counter() - started)
            found[name].cpu_seconds.append(_cpu() - cpu)
    return found


def _cpu() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    running = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return time.process_time() + ended.ru_utime + ended.ru_stime + sum(t.user + t.system for t in running)


def peak_mb() -> float:
    """The most memory that this program ever held. Not ``ru_maxrss``, which starts from that of the parent process."""
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], packages: Sequence[str]) -> None:
    """Print a Markdown table with the machine and the versions below it."""
    print(f"\n### {title}\n")
    print("| " + " | ".join(head) + " |")
    print("| " + " | ".join("---" for _ in head) + " |")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(f"\n{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}")
    print(", ".join(f"{name} {version(name)}" for name in packages))


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
