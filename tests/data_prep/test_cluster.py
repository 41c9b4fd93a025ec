"""Dask's workers: order, a killed worker, limits, an address, and Slurm's way of starting them."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_prep.cluster import DaskWorkers, slurm_cluster
from fm.config.errors import ConfigError, UserError
from fm.config.prepare import PrepareConfig


def work(job: int) -> tuple[int, int]:
    if job == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if job == 5:
        raise UserError("a line for people")
    return 10 * job, resource.getrlimit(resource.RLIMIT_AS)[0]


def gave_up(job: int) -> tuple[int, int]:
    return -job, 0


def test_row_17_results_come_in_order_and_a_killer_costs_only_itself(tmp_path: Path) -> None:
    taken: list[int] = []

    def jobs() -> Iterator[int]:
        for job in (0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11):
            taken.append(job)
            yield job

    limit = int(8.5 * 2**30)
    with DaskWorkers(PrepareConfig(memory_limit_gib=8.5, studies_in_flight=2), 2, tmp_path) as workers:
        results = workers.ordered(work, jobs(), gave_up)
        assert next(results) == (0, limit)
        assert len(taken) <= 5, "no more are taken than may be under way"
        assert list(results) == [(10 * job, limit) if job != 3 else (-3, 0) for job in taken[1:]]
        with pytest.raises(UserError, match="a line for people"):
            list(workers.ordered(work, [5], gave_up))


def test_a_scheduler_at_an_address_and_none(tmp_path: Path) -> None:
    address = tmp_path / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen(
        [*dask_command("scheduler"), "--port", "0", "--no-dashboard", "--scheduler-file", str(address)], **quiet
    )
    worker = subprocess.Popen(
        [*dask_command("worker"), "--scheduler-file", str(address), "--nthreads", "1", "--no-dashboard"], **quiet
    )
    try:
        while not address.exists():
            time.sleep(0.2)
        config = PrepareConfig(cluster=json.loads(address.read_text())["address"])
        with DaskWorkers(config, 7, tmp_path) as workers:
            assert [result[0] for result in workers.ordered(work, [1, 2, 4], gave_up)] == [10, 20, 40]
    finally:
        for process in (worker, scheduler):
            process.terminate()
            process.wait(60)
    with pytest.raises(ConfigError, match="choose local, slurm, or a scheduler's address"):
        PrepareConfig(cluster="dask.example.org")


def dask_command(name: str) -> list[str]:
    """A command of Dask beside this Python."""
    return [str(Path(sys.executable).with_name("dask")), name]


def test_slurm_jobs_run_one_encrypted_worker_each(tmp_path: Path) -> None:
    config = PrepareConfig(cluster="slurm", slurm_partition="mri", slurm_account="lab", memory_limit_gib=4)
    with slurm_cluster(config, tmp_path / "private") as cluster:
        script = cluster.job_script()
    wanted = ("#SBATCH -p mri", "#SBATCH -A lab", "#SBATCH --mem=4G", "#SBATCH -t 24:00:00", "--nthreads 1", "tls://")
    assert all(word in script for word in wanted), script
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o700


SBATCH = """#!/bin/sh
for script; do :; done
setsid sh "$script" > /dev/null 2>&1 &
echo "Submitted batch job $!"
"""
"""Stands in for Slurm's: runs the job on this machine."""


@pytest.mark.full
def test_slurm_jobs_do_the_work_and_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, script in (("sbatch", SBATCH), ("scancel", '#!/bin/sh\nkill -- "-$1"\n')):
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    limit = 8 * 2**30
    with DaskWorkers(PrepareConfig(cluster="slurm", memory_limit_gib=8), 1, tmp_path / "private") as workers:
        assert list(workers.ordered(work, [1, 2, 4], gave_up)) == [(10, limit), (20, limit), (40, limit)]
