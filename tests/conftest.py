"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
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
