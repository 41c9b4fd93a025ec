"""Timing in turns, medians with their spread, and the versions that a figure belongs to."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path


@dataclass(slots=True)
class Timing:
    """Seconds of several rounds."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def rate(self, work: float) -> str:
        """Work per second: median, and from the slowest to the fastest round."""
        low, high = work / max(self.seconds), work / min(self.seconds)
        return f"{work / self.median:.4g} ({low:.4g}–{high:.4g})"


def in_turns(actions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time each action once a round, one after the other, so that a busy moment of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            seconds[name].append(time.perf_counter() - started)
    return {name: Timing(found) for name, found in seconds.items()}


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], packages: Sequence[str]) -> None:
    """Print a Markdown table with the machine and the versions below it."""
    print(f"\n### {title}\n")
    print("| " + " | ".join(head) + " |")
    print("| " + " | ".join("---" for _ in head) + " |")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    known = ", ".join(f"{name} {version(name)}" for name in packages)
    print(
        f"\n{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        f"Python {platform.python_version()}, {known}"
    )


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
