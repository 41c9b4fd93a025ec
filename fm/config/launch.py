"""Where a run's processes start; this group alone holds nodes, processes and devices."""

from __future__ import annotations

from dataclasses import dataclass

from fm.config.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class LaunchConfig:
    """Base of the polymorphic group `launch`; `kind` picks the subclass."""

    kind: str = "???"


@dataclass(kw_only=True, slots=True)
class LocalLaunch(LaunchConfig):
    """Processes on this machine, started by torchrun."""

    kind: str = "local"
    processes: int = 0
    """Worker processes, one per device; 0: one per GPU, without GPUs 2 (1 on a single core)."""
    threads_per_process: int = 0
    """CPU threads of each process; 0: the cores divided by the processes."""

    def __post_init__(self) -> None:
        """Refuse negative counts."""
        if self.processes < 0 or self.threads_per_process < 0:
            raise ConfigError("launch.processes and launch.threads_per_process must not be negative")
