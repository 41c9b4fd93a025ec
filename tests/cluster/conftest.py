"""A real Slurm cluster on this host, and runs that are submitted to it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.cluster import engines
from launch.verbs.main import main

HERE = Path(__file__).parent
SHARED = ("step", "loss", "self_distillation", "image_text", "koleo", "gradient_norm", "teacher_momentum", "volumes")
"""What a step's row says whatever the machines and the clock."""
_DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")


def tiny() -> Any:
    """The drawn dataset and the tiny model of the pretraining tests."""
    path = HERE.parent / "pretrain" / "conftest.py"
    spec = importlib.util.spec_from_file_location("tiny_pretraining", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words of a tiny run, but for where and how long."""
    made = tiny()
    url = made.write_dataset(tmp_path_factory.mktemp("cluster") / "shards", 24)
    small = [word for word in made.SMALL if not word.startswith("launch.")]
    return [f"data.url={url}", *small, "trainer.deterministic=true", "trainer.signal_lead_s=60"]


def cluster(folder: Path, nodes: int) -> Iterator[None]:
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = [name for name in _DAEMONS if shutil.which(name, path=path) is None]
    if missing:
        pytest.skip(f"no Slurm here ({missing[0]}): apt-get install munge slurmctld slurmd slurm-client")
    if os.geteuid() != 0:
        pytest.skip("a Slurm cluster on one host needs root for the nodes' own host names")
    up = subprocess.run([HERE / "slurm-up.sh", folder, str(nodes), "8"], capture_output=True, text=True, timeout=60)
    assert up.returncode == 0, up.stderr
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        yield
    finally:
        subprocess.run([HERE / "slurm-down.sh", folder], timeout=60)
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two nodes of eight pretended cores."""
    yield from cluster(tmp_path_factory.mktemp("slurm"), 2)


class Submitted:
    """A run that was submitted with `fm submit`."""

    def __init__(self, folder: Path, words: list[str]) -> None:
        self.folder = folder
        assert main(["submit", "verb=pretrain", "launch=slurm", f"run={folder}", *words]) == 0
        self.job = engines.newest(folder)

    def state(self) -> str:
        return engines.state(self.job)

    def rows(self) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        return [row for row in found if "loss" in row]

    def log(self) -> str:
        return engines.logs(self.folder, self.job)

    def until(self, met: Callable[[], bool], timeout_s: float = 240) -> None:
        deadline = time.monotonic() + timeout_s
        while not met():
            assert time.monotonic() < deadline, self.log()[-4000:]
            assert self.state() != "failed", self.log()[-4000:]
            time.sleep(0.3)

    def until_step(self, step: int) -> None:
        self.until(lambda: any(row["step"] >= step for row in self.rows()))

    def until_done(self) -> None:
        self.until(lambda: self.state() == "done")


@pytest.fixture
def submitted(slurm: None, words: list[str], tmp_path: Path) -> Iterator[Callable[..., Submitted]]:
    made: list[Submitted] = []

    def submit(*more: str) -> Submitted:
        here = ["launch.nodes=2", "launch.cpus_per_process=1", "launch.minutes=20", *words, *more]
        made.append(Submitted(tmp_path / f"run{len(made)}", here))
        return made[-1]

    yield submit
    for run in made:
        if run.state() in ("waiting", "running"):
            engines.cancel(run.job)
            run.until(lambda run=run: run.state() not in ("waiting", "running"))  # type: ignore[misc]


def trace(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in SHARED) for row in rows]
