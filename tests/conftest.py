"""Fixtures that every room's tests share."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def mri_dev() -> Path:
    """The folder of real MRI that ``MRI_DEV_DATA`` names: unset skips the test, set but missing fails it."""
    value = os.environ.get("MRI_DEV_DATA")
    if not value:
        pytest.skip("MRI_DEV_DATA is not set: it names the folder of real MRI for development")
    folder = Path(value).resolve()
    if not (folder / "MANIFEST.csv").is_file():
        pytest.fail(f"MRI_DEV_DATA={value} has no MANIFEST.csv")
    return folder


@pytest.fixture(scope="session")
def miniature_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of ``fm demo experiment=demo_tiny``, run once per test session, also where several workers want it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    run = shared / "miniature"
    with (shared / "miniature.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        output = shared / "miniature.log"
        if not output.exists():
            fm = Path(sys.executable).with_name("fm")
            with output.open("w") as log:
                subprocess.run(
                    [fm, "demo", f"run={run}", "experiment=demo_tiny"], stdout=log, stderr=log, check=False, timeout=540
                )
    if not (run / "evaluate" / "results.json").is_file():
        pytest.fail("fm demo experiment=demo_tiny failed:\n" + output.read_text()[-3000:])
    return run
