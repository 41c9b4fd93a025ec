"""A worker of fm pretrain whose saves take so many seconds: ``slow_save.py RUN_DIR SECONDS``, under torchrun."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import launch.worker
from fm.engine.snapshot import Snapshot

if __name__ == "__main__":
    os.environ["FM_ATTEMPT"] = "slow"
    write = Snapshot.write

    def slowly(snapshot: Snapshot, folder: Path) -> None:
        time.sleep(float(sys.argv[2]))
        write(snapshot, folder)

    Snapshot.write = slowly  # type: ignore[method-assign]
    sys.exit(launch.worker.main(Path(sys.argv[1])))
