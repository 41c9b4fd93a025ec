"""Two nodes as Kubernetes and SageMaker would start them, on this machine: their variables, their signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fm.config import compose
from launch import runs
from launch.preflight import nodes

STEPS = 30
CLUSTER = {
    "kubernetes": ("launch=kubernetes", "launch.image=fm:1"),
    "trainjob": ("launch=kubernetes", "launch.image=fm:1", "launch.resource=trainjob"),
    "sagemaker": ("launch=sagemaker", "launch.image=fm:1", "launch.role=r", "launch.output=s3://b/m"),
}


def free_ports() -> int:
    """The first of three free ports in a row."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
        try:
            for more in range(3):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port + more))
        except OSError:
            continue
        return port


def variables(engine: str, rank: int, port: int, folder: Path) -> dict[str, str]:
    """What the engine tells node `rank` of two."""
    common = {"FM_PORT": str(port), "FM_NODES": "2"}
    if engine == "kubernetes":
        return {**common, "JOB_COMPLETION_INDEX": str(rank), "FM_MASTER": "127.0.0.1"}
    if engine == "trainjob":
        pet = {"PET_NODE_RANK": str(rank), "PET_NNODES": "2", "PET_NPROC_PER_NODE": "1"}
        return {**common, **pet, "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}
    config = folder / f"resourceconfig-{rank}.json"
    hosts = ["127.0.0.1", "127.0.0.2"]
    config.write_text(json.dumps({"current_host": hosts[rank], "hosts": hosts}))
    return {**common, "FM_SAGEMAKER_CONFIG": str(config)}


@pytest.fixture
def started(words: list[str], tmp_path: Path) -> Callable[..., list[subprocess.Popen[str]]]:
    """Starts the two nodes of an engine on a run that was composed elsewhere."""

    def start(engine: str, path_of_node_1: str = "") -> list[subprocess.Popen[str]]:
        seed, run = tmp_path / "submitted", tmp_path / "volume" / "run"
        if not seed.exists():
            more = [*words, f"max_steps={STEPS}", "launch.nodes=2", "launch.cpus_per_process=1", *CLUSTER[engine]]
            runs.open_run(compose.parse("pretrain", [f"run={seed}", *more], []))
        port = free_ports()
        processes = []
        for rank in range(2):
            own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PET_"))}
            first = [path_of_node_1] if rank and path_of_node_1 else []
            environment = {**own, "PYTHONPATH": os.pathsep.join([*first, str(Path(__file__).parents[2])])}
            environment |= variables(engine, rank, port, tmp_path)
            command = [sys.executable, "-m", "launch.node", str(run), str(seed)]
            processes.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            )
        return processes

    return start


def ended(processes: list[subprocess.Popen[str]]) -> list[int]:
    said = [node.communicate(timeout=300)[0] for node in processes]
    print(*said, sep="\n")
    return [node.returncode for node in processes]


@pytest.mark.full
@pytest.mark.parametrize("engine", CLUSTER)
def test_terminated_by_the_engine_and_started_again(
    engine: str, started: Callable[..., list[subprocess.Popen[str]]], tmp_path: Path
) -> None:
    run = tmp_path / "volume" / "run"
    processes = started(engine)
    deadline = time.monotonic() + 240
    while len(steps(run)) < 5:
        assert time.monotonic() < deadline and all(node.poll() is None for node in processes)
        time.sleep(0.05)
    for node in processes:
        node.send_signal(signal.SIGTERM)
    assert ended(processes) == [75, 75]
    stopped = steps(run)
    assert 5 <= len(stopped) < STEPS
    assert ended(started(engine)) == [0, 0]
    assert steps(run) == list(range(1, STEPS + 1))
    verdict: dict[str, Any] = json.loads((run / "verdict.json").read_text())
    assert verdict["outcome"] == "done" and verdict["attempt"] == "2"


def steps(run: Path) -> list[int]:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [row["step"] for line in lines if line.endswith("\n") and "loss" in (row := json.loads(line))]


def test_a_node_with_another_version_is_named_before_anybody_trains(
    started: Callable[..., list[subprocess.Popen[str]]], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    (other / "numpy-9.9.9.dist-info").mkdir(parents=True)
    (other / "numpy-9.9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 9.9.9\n")
    processes = started("kubernetes", path_of_node_1=str(other))
    said = [node.communicate(timeout=300)[0] for node in processes]
    assert [node.returncode for node in processes] == [1, 1]
    assert all("numpy 9.9.9, others" in text or "others 9.9.9" in text for text in said), said
    assert not (tmp_path / "volume" / "run" / "metrics.jsonl").exists()
    report = json.loads((tmp_path / "volume" / "run" / "preflight.json").read_text())
    assert len(report["nodes"]) == 2 and len(report["problems"]) == 1


@pytest.fixture
def job(words: list[str], tmp_path: Path) -> Any:
    more = [*words, *CLUSTER["kubernetes"]]
    return runs.open_run(compose.parse("pretrain", [f"run={tmp_path / 'run'}", *more], []))


def test_shards_that_cannot_be_read_are_found(job: Any, tmp_path: Path) -> None:
    copy = tmp_path / "shards"
    shutil.copytree(job.data.url, copy)
    job.data.url = str(copy)
    assert nodes.examine(job, 0, tmp_path).unreadable == ""
    shard = next(copy.glob("*.tar"))
    whole = bytearray(shard.read_bytes())
    for at in range(600, len(whole), 512):
        whole[at] ^= 1
    shard.write_bytes(whole)
    facts = nodes.examine(job, 0, tmp_path)
    assert shard.name in facts.unreadable
    assert "cannot read the shards" in nodes.judge([facts], job.launch)[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_is_full_is_found(job: Any, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("no mounts in this container")
    try:
        assert "0.0 GB free" in nodes.judge([nodes.examine(job, 0, disk)], job.launch)[0]
        (disk / "full").write_bytes(bytes(60_000))
        assert "cannot write the run folder" in nodes.judge([nodes.examine(job, 0, disk)], job.launch)[0]
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.full
def test_a_slow_node_is_found(job: Any, tmp_path: Path) -> None:
    """The second look is taken on a core that six others want too."""
    free = nodes.examine(job, 0, tmp_path)
    core = min(os.sched_getaffinity(0))
    hogs = [subprocess.Popen(["taskset", "-c", str(core), sys.executable, "-c", "while True: pass"]) for _ in range(6)]
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        slow = nodes.examine(job, 1, tmp_path)
    finally:
        os.sched_setaffinity(0, before)
        for hog in hogs:
            hog.kill()
    slow.time = free.time
    found = nodes.judge([free, free, slow], job.launch)
    assert len(found) == 1 and "of the others' speed" in found[0]
