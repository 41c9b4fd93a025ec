"""One task of a sweep that an engine runs as an array: ``python -m launch.task PARENT``, with its number in FM_TASK."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

TASKS = "tasks.json"
"""File of a sweep with the command of every task."""


def main(parent: Path) -> int:
    """Become the command of this task; returns only where it cannot be started."""
    number = int(os.environ.get("FM_TASK", "0"))
    command = json.loads((parent / TASKS).read_text(encoding="utf-8"))[number]
    os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
