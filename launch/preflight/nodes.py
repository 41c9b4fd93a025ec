"""The nodes of a job, checked together before any of them trains: GPU hours are spent on what is known to work."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import psutil

from fm.config.errors import UserError
from fm.config.jobs.training import PretrainJob
from fm.config.launch import ClusterLaunch
from fm.parallel.meeting import Meeting
from launch.cluster.place import Place
from launch.runs import commit
from launch.worker import gpu_count

REPORT = "preflight.json"
"""File of the run folder with what the last check found."""
PACKAGES = ("torch", "lightning", "deepspeed", "transformers", "webdataset", "blosc2", "numpy")
MIN_DISK_GB = 1.0
MIN_SPEED = 0.5
"""Least speed of a node as a share of the median."""
MAX_SKEW_S = 5.0
"""Clocks further apart put checkpoints and logs in the wrong order."""
_STUDIES = 16
"""Studies that a node reads."""
_SPEED_S = 0.3
_REDUCE_TIMEOUT_S = 180


@dataclass(kw_only=True, slots=True)
class NodeFacts:
    """What one node is and can do."""

    host: str
    versions: dict[str, str] = field(default_factory=dict)
    gpus: int = 0
    memory_gb: float = 0.0
    """Free memory."""
    disk_gb: float = 0.0
    """Free on the disk of the run folder."""
    unwritable: str = ""
    """Why the run folder cannot be written; empty: it can."""
    shard_mb_s: float = 0.0
    unreadable: str = ""
    """Why shards cannot be read; empty: they can."""
    gflops: float = 0.0
    """Float32 product of matrices on one core."""
    time: float = 0.0
    """Clock at the moment when all nodes had met, seconds since 1970."""
    reduce_mb_s: float = 0.0
    """All-reduce among the nodes; 0: there is one node only."""
    silent: str = ""
    """Why the nodes cannot add up; empty: they can."""


class PreflightError(UserError):
    """Nodes that should not train."""


def check_nodes(job: PretrainJob, launch: ClusterLaunch, place: Place, meeting: Meeting, run_dir: Path) -> None:
    """Look at every node, write ``preflight.json`` and print one table; all nodes call it and end alike.

    Raises:
        PreflightError: names the nodes and the cure.
    """
    mine = examine(job, place.rank, run_dir)
    meeting.share("clock")
    mine.time = time.time()
    if place.nodes > 1:
        measure_reduce(mine, place)
    found = [NodeFacts(**facts) for facts in meeting.gather("facts", asdict(mine))]
    problems = judge(found, launch)
    if place.rank == 0:
        _report(found, problems, run_dir)
    if problems:
        raise PreflightError("; ".join(problems))


def examine(job: PretrainJob, rank: int, run_dir: Path) -> NodeFacts:
    """What this node says of itself."""
    facts = NodeFacts(host=socket.gethostname(), gpus=gpu_count())
    facts.versions = {"Python": platform.python_version(), **_versions(), "code": commit()}
    facts.memory_gb = psutil.virtual_memory().available / 2**30
    try:
        facts.disk_gb = shutil.disk_usage(run_dir).free / 1e9
        probe = run_dir / f".preflight-{rank}"
        probe.write_bytes(os.urandom(1 << 16))
        probe.unlink()
    except OSError as err:
        facts.unwritable = str(err)
    _read_shards(facts, job, rank)
    facts.gflops = _speed()
    return facts


def judge(found: list[NodeFacts], launch: ClusterLaunch) -> list[str]:
    """What is wrong, each with the node's name and what to do; empty where nothing is."""
    problems = []
    for name in dict.fromkeys(name for facts in found for name in facts.versions):
        said = [facts.versions.get(name, "missing") for facts in found]
        usual = Counter(said).most_common(1)[0][0]
        for facts, value in zip(found, said, strict=True):
            if value != usual:
                problems.append(
                    f"{facts.host} has {name} {value}, others {usual}: install the same environment on every node"
                )
    median = statistics.median(facts.gflops for facts in found)
    first = min(facts.time for facts in found)
    for facts in found:
        if facts.gpus < launch.gpus:
            problems.append(f"{facts.host} shows {facts.gpus} GPUs of {launch.gpus}: take the node out of service")
        if facts.unwritable:
            problems.append(f"{facts.host} cannot write the run folder ({facts.unwritable}): mount it there")
        elif facts.disk_gb < MIN_DISK_GB:
            problems.append(f"{facts.host} has {facts.disk_gb:.1f} GB free for the run folder: free some space")
        if facts.unreadable:
            problems.append(f"{facts.host} cannot read the shards ({facts.unreadable}): mount or copy them there")
        if facts.silent:
            problems.append(f"{facts.host} cannot talk to the others ({facts.silent}): check the network and its ports")
        if facts.gflops < MIN_SPEED * median:
            problems.append(
                f"{facts.host} computes at {facts.gflops / median:.0%} of the others' speed: exclude it, or find out "
                "what else runs there"
            )
        if facts.time - first > MAX_SKEW_S:
            problems.append(f"{facts.host} is {facts.time - first:.0f} s ahead of the others: set its clock")
    return problems


def measure_reduce(facts: NodeFacts, place: Place) -> None:
    """Add up some megabytes among the nodes, in processes of their own that leave no trace on the devices."""
    words = [sys.executable, "-m", "fm.parallel.bandwidth", place.master, str(place.port + 2)]
    words += [str(place.nodes), str(place.rank)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_REDUCE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        facts.silent = f"no all-reduce within {_REDUCE_TIMEOUT_S} s"
        return
    if done.returncode:
        facts.silent = (done.stderr.strip().splitlines() or ["the all-reduce failed"])[-1][:200]
    else:
        facts.reduce_mb_s = float(done.stdout.split()[-1])


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def _read_shards(facts: NodeFacts, job: PretrainJob, rank: int) -> None:
    """Read whole studies from all over the dataset, other ones on every node."""
    from fm.data.index import Manifest
    from fm.data.store import DatasetError, access_of

    try:
        manifest = Manifest.open(job.data.url, access_of(job.data))
        rows = range(rank % len(manifest), len(manifest), max(1, len(manifest) // _STUDIES))
        samples = [manifest.samples[row] for row in rows]
        wanted = [manifest.request(sample.key, member) for sample in samples for member in sample.members]
        begin = time.perf_counter()
        read = manifest.store.read_many(wanted)
        seconds = max(time.perf_counter() - begin, 1e-9)
        if broken := [found for found in read if isinstance(found, DatasetError)]:
            raise broken[0]
        facts.shard_mb_s = sum(len(found) for found in read if not isinstance(found, DatasetError)) / 1e6 / seconds
    except (UserError, OSError) as err:
        facts.unreadable = str(err)


def _speed() -> float:
    """Float32 GFLOP/s of one core."""
    n = 384
    left = np.ones((n, n), dtype=np.float32)
    left @ left
    count, begin = 0, time.perf_counter()
    while (seconds := time.perf_counter() - begin) < _SPEED_S:
        left @ left
        count += 1
    return 2 * n**3 * count / seconds / 1e9


def _report(found: list[NodeFacts], problems: list[str], run_dir: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    try:
        text = json.dumps({"nodes": [asdict(facts) for facts in found], "problems": problems}, indent=1)
        (run_dir / REPORT).write_text(text + "\n", encoding="utf-8")
    except OSError:
        # The problem is on the list, and on the terminal.
        pass
    table = Table("node", "GPUs", "memory free", "disk free", "shards", "all-reduce", "one core", title="preflight")
    for facts in found:
        table.add_row(
            facts.host,
            str(facts.gpus),
            f"{facts.memory_gb:.0f} GiB",
            f"{facts.disk_gb:.0f} GB",
            "unreadable" if facts.unreadable else f"{facts.shard_mb_s:.0f} MB/s",
            "none" if facts.silent else f"{facts.reduce_mb_s:.0f} MB/s" if facts.reduce_mb_s else "",
            f"{facts.gflops:.0f} GFLOP/s",
        )
    Console(width=110).print(table)
