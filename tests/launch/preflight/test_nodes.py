"""Nodes are judged by what they say; the saying is tried on real processes and real Slurm elsewhere."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fm.config.launch import SlurmLaunch
from fm.parallel.meeting import Meeting, MeetingError
from launch.cluster.place import Place
from launch.preflight.nodes import NodeFacts, judge, measure_reduce


def node(host: str, **more: object) -> NodeFacts:
    facts: dict[str, object] = {"versions": {"torch": "2.13.0"}, "memory_gb": 8.0, "disk_gb": 50.0, "gflops": 40.0}
    return NodeFacts(host=host, **{**facts, **more})  # type: ignore[arg-type]


def test_equal_nodes_may_train() -> None:
    assert judge([node("a"), node("b"), node("c")], SlurmLaunch()) == []


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"versions": {"torch": "2.12.0"}}, "b has torch 2.12.0, others 2.13.0"),
        ({"versions": {}}, "b has torch missing"),
        ({"unreadable": "shard-000003.tar: No such file"}, "b cannot read the shards"),
        ({"disk_gb": 0.2}, "b has 0.2 GB free"),
        ({"unwritable": "Read-only file system"}, "b cannot write the run folder"),
        ({"gflops": 11.0}, "b computes at 28%"),
        ({"time": 12.0}, "b is 12 s ahead"),
        ({"silent": "Connection refused"}, "b cannot talk to the others"),
    ],
)
def test_an_odd_node_is_named_with_the_cure(odd: dict[str, object], said: str) -> None:
    problems = judge([node("a"), node("b", **odd), node("c")], SlurmLaunch())
    assert len(problems) == 1 and problems[0].startswith(said) and ":" in problems[0]


def test_a_node_that_lost_a_gpu() -> None:
    found = judge([node("a", gpus=8), node("b", gpus=7)], SlurmLaunch(gpus=8))
    assert found == ["b shows 7 GPUs of 8: take the node out of service"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def speak(port: int, rank: int, out: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    meeting = Meeting("127.0.0.1", port, 3, rank, timeout_s=60)
    out.put((rank, meeting.share("attempt", "7" if rank == 0 else None), meeting.gather("facts", rank)))


def test_three_nodes_hear_the_first_and_one_another() -> None:
    context = multiprocessing.get_context("spawn")
    port, out = free_port(), context.Queue()
    nodes = [context.Process(target=speak, args=(port, rank, out)) for rank in range(3)]
    for process in nodes:
        process.start()
    heard = sorted(out.get(timeout=120) for _ in nodes)
    for process in nodes:
        process.join(60)
        assert process.exitcode == 0
    assert heard == [(rank, "7", [0, 1, 2]) for rank in range(3)]


def test_a_node_that_never_comes_is_told_of() -> None:
    with pytest.raises(MeetingError, match="are all nodes up"):
        Meeting("127.0.0.1", free_port(), 2, 0, timeout_s=2)


def test_two_processes_add_up_and_a_lonely_one_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    port = free_port()
    other = subprocess.Popen([sys.executable, "-m", "fm.parallel.bandwidth", "127.0.0.1", str(port), "2", "1"])
    facts = NodeFacts(host="a")
    measure_reduce(facts, Place(engine="slurm", nodes=2, rank=0, master="127.0.0.1", port=port - 2))
    assert other.wait(60) == 0 and facts.reduce_mb_s > 0 and facts.silent == ""
    monkeypatch.setattr("launch.preflight.nodes._REDUCE_TIMEOUT_S", 8)
    begin = time.monotonic()
    measure_reduce(facts, Place(engine="slurm", nodes=2, rank=0, master="127.0.0.1", port=free_port()))
    assert facts.silent and time.monotonic() - begin < 60
    assert os.environ["PYTHONPATH"]
