"""What a job needs, whichever engine runs it: one typed value that every renderer reads."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from fm.config.errors import UserError
from fm.config.launch import ClusterLaunch

SOURCE = "source"
"""Folder of a job with the code that it runs: the tracked files as they stood when it was submitted."""
LOGS = "logs"
"""Folder of a job with what the engine wrote."""


class SubmitError(UserError):
    """A job that cannot be sent, or that the engine refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobSpec:
    """One job: what runs, on how much, and where its files lie.

    Every node starts `command` once; the command starts the processes of its node and makes of their end an exit code:
    0 done, 75 saved and to be run again, else failed.
    """

    name: str
    command: tuple[str, ...]
    """Words of the command; the first is the Python of the nodes."""
    folder: Path
    """Folder of the job here, absolute."""
    code: str
    """Folder on the nodes that the command's modules are imported from; empty: the image holds them."""
    launch: ClusterLaunch
    signal_lead_s: int
    """Seconds that the job wants between a stop signal and the kill."""
    tasks: int = 1
    """Jobs of a sweep that the engine runs as one array; the command reads the number of its task."""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name in letters that every engine takes: lower case, digits, dashes, at most 40."""
        plain = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:40].strip("-")
        return plain if plain[:1].isalpha() else f"fm-{plain}".strip("-")

    @property
    def cpus(self) -> int:
        """CPUs of each node."""
        return self.launch.cpus_per_process * self.launch.processes

    @property
    def variables(self) -> dict[str, str]:
        """Environment of the job, sorted by name: what the command needs to find its code and its node."""
        own = {"PYTHONUNBUFFERED": "1", "FM_NODES": str(self.launch.nodes)}
        if self.launch.port:
            own["FM_PORT"] = str(self.launch.port)
        code = {"PYTHONPATH": self.code} if self.code else {}
        return dict(sorted({**own, **code, **self.environment, **self.launch.environment}.items()))

    @property
    def seed_files(self) -> list[Path]:
        """Files of the folder here from which the nodes make their own, where they do not see this one."""
        return [path for name in ("run.yaml", "attempts.jsonl") if (path := self.folder / name).is_file()]


def python_of(launch: ClusterLaunch) -> str:
    """The interpreter on the nodes: this one, or the image's."""
    return "python" if launch.image else sys.executable
