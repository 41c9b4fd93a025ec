"""Runs on a real Slurm, disturbed in every way that a cluster knows; each must end like the run that was left alone."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fm.config.launch import SlurmLaunch
from launch.cluster import engines, slurm
from launch.cluster.spec import SubmitError
from launch.verbs.main import main

STEPS = 40
HERE = Path(__file__).parent
SAVE = ("trainer.checkpoint_every_steps=20", f"max_steps={STEPS}")


def call(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture(scope="module")
def calm(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """The trace of the same run in two processes of this machine, undisturbed."""
    run = tmp_path_factory.mktemp("calm") / "run"
    local = ["launch.processes=2", "launch.threads_per_process=1"]
    assert main(["pretrain", f"run={run}", *words, *local, *SAVE]) == 0
    return trace_of(run)


def trace_of(run: Path) -> list[tuple[Any, ...]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "loss", "self_distillation", "image_text", "koleo", "gradient_norm", "teacher_momentum", "volumes")
    return [tuple(row[name] for name in names) for row in rows if "loss" in row]


def assert_like(run: Any, calm: list[tuple[Any, ...]], attempts: int) -> None:
    run.until_done()
    assert trace_of(run.folder) == calm
    assert json.loads((run.folder / "verdict.json").read_text())["outcome"] == "done"
    lines = (run.folder / "attempts.jsonl").read_text().splitlines()
    assert len(lines) == attempts, lines


def test_two_nodes_stopped_by_a_signal_go_on_and_end_as_one_machine(
    submitted: Callable[..., Any], calm: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    run = submitted(*SAVE)
    run.until_step(6)
    call("scancel", "--signal=USR1", run.job.id)
    assert_like(run, calm, attempts=2)
    assert "queued again" in run.log()
    found = json.loads((run.folder / "preflight.json").read_text())
    assert [node["host"] for node in found["nodes"]] == ["node1", "node2"]
    assert all(node["reduce_mb_s"] > 0 and node["shard_mb_s"] > 0 for node in found["nodes"])
    capsys.readouterr()
    assert main(["jobs", "list", f"folder={run.folder.parent}"]) == 0
    assert "done at step" in capsys.readouterr().out.replace("\n", " ")


def test_what_can_be_known_is_refused_before_anything_is_made(
    slurm: None, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    for wrong, said in (
        ("launch.partition=mian", "this cluster has main, urgent"),
        ("launch.nodes=3", "the partition has 2"),
        ("launch.gpus=9", "the nodes have 2"),
        ("launch.secrets=[NO_SUCH_TOKEN]", "NO_SUCH_TOKEN is not set"),
        ("data.global_batch_size=7", "global_batch_size"),
        ("launch.options=['--reservation=none']", "sbatch refused"),
    ):
        assert main(["submit", "verb=pretrain", "launch=slurm", f"run={run}", *words, wrong]) == 1
        assert said in capsys.readouterr().err
        assert not run.exists()
    assert call("squeue", "--noheader") == ""


@pytest.mark.full
def test_a_requeue_by_the_administrator(submitted: Callable[..., Any], calm: list[tuple[Any, ...]]) -> None:
    run = submitted(*SAVE)
    run.until_step(6)
    call("scontrol", "requeue", run.job.id)
    assert_like(run, calm, attempts=2)


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_preempted_with_a_save_longer_than_half_a_minute(
    submitted: Callable[..., Any], calm: list[tuple[Any, ...]]
) -> None:
    """The save after the signal takes 35 s; the partition gives 60."""
    run = submitted(*SAVE, f"launch.environment.PYTHONPATH={HERE / 'slow'}:{HERE.parents[1]}", *slow(35))
    run.until_step(6)
    urgent = call(
        "sbatch", "--parsable", "--partition=urgent", "--exclusive", "--nodes=2", "--output=/dev/null", "--wrap=sleep 1"
    ).strip()
    run.until(lambda: engines.state(engines.Job(engine="slurm", id=urgent, time="")) == "done")
    run.until(lambda: run.state() == "done", timeout_s=900)
    assert_like(run, calm, attempts=2)
    assert "resumes at step" in (run.folder / "events.log").read_text()


def slow(seconds: int) -> tuple[str, ...]:
    return (f"launch.environment.SLOW_SAVE_S={seconds}", "trainer.checkpoint_every_steps=1000")


@pytest.mark.full
def test_a_node_that_goes_down(submitted: Callable[..., Any], calm: list[tuple[Any, ...]]) -> None:
    run = submitted(*SAVE, "trainer.checkpoint_every_steps=10")
    run.until_step(12)
    call("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=test")
    run.until(lambda: run.state() == "waiting")  # the node comes back by itself: its slurmd is well
    assert_like(run, calm, attempts=2)


@pytest.mark.full
@pytest.mark.timeout(1500)
def test_a_time_limit(submitted: Callable[..., Any]) -> None:
    """Two minutes an attempt: stopped before they are over, saved, queued again, gone on with."""
    run = submitted("launch.minutes=2", "max_steps=100000", "trainer.signal_lead_s=20")
    run.until(lambda: "resumes at step" in (run.folder / "events.log").read_text(), timeout_s=1200)
    saved = json.loads((run.folder / "verdict.json").read_text())
    assert saved["outcome"] == "requeue"
    run.until_step(saved["step"] + 3)
    assert main(["jobs", "cancel", f"folder={run.folder}"]) == 0
    run.until(lambda: run.state() == "cancelled")
    steps = [row["step"] for row in run.rows()]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= saved["step"] + 3


@pytest.mark.full
def test_cancelled_for_good_and_sent_again(
    submitted: Callable[..., Any], calm: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    run = submitted(*SAVE)
    run.until_step(6)
    assert main(["jobs", "cancel", f"folder={run.folder}"]) == 0
    run.until(lambda: run.state() == "cancelled")
    call("sleep", "10")
    assert run.state() == "cancelled" and "queued again" not in run.log()
    assert main(["jobs", "resubmit", f"folder={run.folder}"]) == 0
    run.job = engines.newest(run.folder)
    assert_like(run, calm, attempts=2)
    capsys.readouterr()
    assert main(["jobs", "logs", f"folder={run.folder}"]) == 0
    assert "attempt 2" in capsys.readouterr().out


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_a_hundred_tiny_runs_as_one_array(slurm: None, words: list[str], tmp_path: Path) -> None:
    parent = tmp_path / "sweep"
    seeds = ",".join(str(seed) for seed in range(100))
    more = ["launch.cpus_per_process=4", "launch.parallel=2", "launch.preflight=false", "max_steps=2"]
    assert main(["submit", "-m", "verb=pretrain", "launch=slurm", f"run={parent}", *words, *more, f"seed={seeds}"]) == 0
    job = engines.newest(parent)
    while engines.state(job) in ("waiting", "running"):
        call("sleep", "2")
    children = sorted(path.parent for path in parent.glob("*/verdict.json"))
    assert engines.state(job) == "done" and len(children) == 100
    assert all(json.loads((child / "verdict.json").read_text())["outcome"] == "done" for child in children)


def test_state_of_a_job_that_slurm_has_forgotten(slurm: None) -> None:
    assert engines.state(engines.Job(engine="slurm", id="99999", time="")) == "unknown"


def test_no_sbatch_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(SubmitError, match="login node"):
        slurm.check(SlurmLaunch())
