from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

from launch.preflight import checks


def facts(folder: Path) -> dict[str, checks.Fact]:
    return {fact.topic: fact for fact in checks.examine(folder)}


def test_versions_accelerator_and_space_are_those_of_this_machine(tmp_path: Path) -> None:
    found = facts(tmp_path / "not" / "yet")
    assert found["torch"].found == version("torch")
    assert found["DeepSpeed"].found.startswith("accelerator ")
    free = shutil.disk_usage(tmp_path).free / checks.GB
    assert abs(float(found["Disk"].found.split()[0]) - free) < 5
    offload = found["Offload"]
    assert (offload.found, "libaio" in offload.advice) in (("to host memory and NVMe", False), ("to host memory", True))
    assert not any(fact.needed for fact in found.values())


def test_what_is_missing_comes_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setattr(
        checks, "find_spec", lambda name: None if name in ("s3fs", "gcsfs", "torch", "deepspeed") else object()
    )
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 9, 1))
    found = facts(tmp_path)
    assert "[cloud]" in found["S3"].advice
    assert "login node" in found["Slurm"].advice
    assert "no offload to NVMe" in found["Compiler"].advice
    assert "the demo wants" in found["Disk"].advice
    assert found["git"].found == "missing"


def test_a_missing_package_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checks, "PACKAGES", ("torch", "no-such-package"))
    found = facts(tmp_path)
    assert found["no-such-package"].needed and not found["torch"].needed
