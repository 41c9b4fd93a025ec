"""Timing in turns, medians with their spread, and the versions that a figure belongs to."""

from __future__ import annotations

import gc
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path


@dataclass(slots=True)
class Timing:
    """Seconds of several rounds, by the clock and of processors, those of finished child processes included."""

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
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


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
