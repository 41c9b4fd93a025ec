"""Signals, kills and damage to the real command; whatever happens, the run ends as the undisturbed one does."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from fm.engine.checkpoint import CheckpointStore
from fm.engine.verdict import Outcome, read_verdict
from launch.runs import attempts

Rows = Callable[[Path], list[dict[str, Any]]]
Fm = Callable[..., "subprocess.Popen[str]"]
Wait = Callable[[Path, int, "subprocess.Popen[str]"], int]
SHARED = ("step", "loss", "self_distillation", "image_text", "koleo", "gradient_norm", "teacher_momentum", "volumes")


def trace(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in SHARED) for row in rows]


def processes_in(run_dir: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(run_dir) in word for word in process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until_gone(run_dir: Path) -> None:
    deadline = time.monotonic() + 60
    while processes_in(run_dir):
        assert time.monotonic() < deadline, f"left behind: {processes_in(run_dir)}"
        time.sleep(0.05)


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, _ = process.communicate(timeout=400)
    return process.returncode, out


def flip_a_byte(path: Path) -> None:
    payload = bytearray(path.read_bytes())
    payload[len(payload) // 2] ^= 1
    path.write_bytes(payload)


@pytest.mark.full
def test_rows_34_35_and_38_a_disturbed_run_ends_as_the_undisturbed_one(
    tmp_path: Path,
    dataset: str,
    two_rank_runs: dict[str, Path],
    calm_words: tuple[str, ...],
    new_run: Callable[..., Path],
    fm: Fm,
    rows: Rows,
    wait_for_step: Wait,
) -> None:
    """SIGTERM, SIGKILL of everything, a flipped byte in the newest checkpoint: the same trace, bit for bit."""
    calm, run = two_rank_runs["calm"], new_run(tmp_path / "run", dataset, *calm_words)
    shutil.copytree(calm / "tokenizer", run / "tokenizer")
    store = CheckpointStore(run / "checkpoints")

    process = fm("pretrain", f"run={run}")
    wait_for_step(run, 4, process)
    process.send_signal(signal.SIGTERM)
    code, out = end(process)
    assert code == 75, out
    assert f"next: fm pretrain run={run}" in out
    saved = store.steps()[-1]
    assert rows(run)[-1]["step"] == saved, "saved where it stopped"
    verdict = read_verdict(run, str(attempts(run)[-1]["attempt"]))
    assert verdict is not None and verdict.outcome is Outcome.REQUEUE and verdict.step == saved
    wait_until_gone(run)

    process = fm("pretrain", f"run={run}")
    wait_for_step(run, saved + 4, process)
    process.kill()
    _, out = end(process)
    assert f"resumes at step {saved} of 14" in out
    wait_until_gone(run)
    assert len(store.steps()) >= 2
    newest = store.steps()[-1]
    flip_a_byte(next(store.folder(newest).glob("moments-*")))

    code, out = end(fm("pretrain", f"run={run}"))
    assert code == 0, out
    assert f"step-{newest:08d}" in out and "does not have the SHA-256" in out and "falling back" in out
    assert trace(rows(run)) == trace(rows(calm))
    assert [row["step"] for row in rows(run)] == list(range(1, 15))
    assert len({row["attempt"] for row in rows(run)}) > 1
    teachers = [
        (folder / "checkpoints" / "step-00000014" / "teacher.safetensors").read_bytes() for folder in (calm, run)
    ]
    assert teachers[0] == teachers[1]


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("target", ["launcher", "torchrun", "rank0", "rank1", "all"])
def test_row_35_signals_end_in_one_checkpoint_and_75(
    number: signal.Signals,
    target: str,
    tmp_path: Path,
    dataset: str,
    new_run: Callable[..., Path],
    fm: Fm,
    rows: Rows,
    wait_for_step: Wait,
) -> None:
    run = new_run(tmp_path / "run", dataset, "max_steps=500", "trainer.checkpoint_every_steps=1000")
    process = fm("pretrain", f"run={run}")
    wait_for_step(run, 2, process)
    agent = [p for p in processes_in(run) if "torch.distributed.run" in p.cmdline()]
    workers = sorted((p for p in agent[0].children()), key=lambda p: p.environ()["RANK"])
    chosen = {"launcher": [process], "torchrun": agent, "rank0": workers[:1], "rank1": workers[1:]}
    for one in chosen.get(target, [process, *agent, *workers]):
        for _ in range(2):
            one.send_signal(number)
    code, out = end(process)
    assert code == 75, out
    steps = CheckpointStore(run / "checkpoints").steps()
    assert len(steps) == 1 and rows(run)[-1]["step"] == steps[0]


@pytest.mark.full
def test_row_34_a_killed_rank_fails_the_attempt_and_the_next_goes_on(
    tmp_path: Path, dataset: str, new_run: Callable[..., Path], fm: Fm, rows: Rows, wait_for_step: Wait
) -> None:
    run = new_run(tmp_path / "run", dataset, "max_steps=16", "trainer.checkpoint_every_steps=2")
    process = fm("pretrain", f"run={run}")
    wait_for_step(run, 5, process)
    agent = next(p for p in processes_in(run) if "torch.distributed.run" in p.cmdline())
    next(p for p in agent.children() if p.environ()["RANK"] == "1").kill()
    code, out = end(process)
    assert code == 1, out
    wait_until_gone(run)
    code, out = end(fm("pretrain", f"run={run}"))
    assert code == 0 and "resumes at step" in out
    assert [row["step"] for row in rows(run)] == list(range(1, 17))


@pytest.mark.full
def test_without_reports_it_trains_on_images_alone(
    tmp_path: Path, silent_dataset: str, new_run: Callable[..., Path], fm: Fm, rows: Rows
) -> None:
    run = new_run(tmp_path / "run", silent_dataset, "max_steps=6")
    code, out = end(fm("pretrain", f"run={run}"))
    assert code == 0, out
    assert all(row["image_text"] == 0 for row in rows(run))
    assert rows(run)[-1]["self_distillation"] < rows(run)[0]["self_distillation"]
    code, out = end(fm("export", f"from_run={run}", f"out={tmp_path / 'encoder'}"))
    assert code == 0 and (tmp_path / "encoder" / "model.safetensors").is_file()


@pytest.mark.full
def test_row_40_checkpoints_that_cannot_be_written(
    tmp_path: Path, dataset: str, new_run: Callable[..., Path], fm: Fm, rows: Rows
) -> None:
    """Training goes on without saves, says so, and the command does not claim success."""
    run = new_run(tmp_path / "run", dataset, "max_steps=6", "trainer.checkpoint_every_steps=2")
    (run / "checkpoints").write_text("in the way")
    code, out = end(fm("pretrain", f"run={run}"))
    assert code == 1
    assert "training goes on" in out and "could not be saved" in out
    assert rows(run)[-1]["step"] == 6


def test_batches_that_do_not_fit_are_refused_before_anything_starts(
    tmp_path: Path, dataset: str, new_run: Callable[..., Path], fm: Fm
) -> None:
    run = new_run(tmp_path / "run", dataset, "data.global_batch_size=14", "data.micro_batch_size=4")
    code, out = end(fm("pretrain", f"run={run}"))
    assert code == 1
    assert out.splitlines()[-1].startswith("fm: data.global_batch_size=14 is no multiple")
    assert not (run / "tokenizer").exists()


@pytest.mark.full
def test_row_39_a_workers_refusal_is_one_line(
    tmp_path: Path, dataset: str, new_run: Callable[..., Path], fm: Fm
) -> None:
    """It reaches the user once, not once a rank, and without a traceback."""
    run = new_run(tmp_path / "run", dataset, "trainer.resume=required")
    code, out = end(fm("pretrain", f"run={run}"))
    assert code == 1
    assert [line for line in out.splitlines() if line.startswith("fm: trainer.resume=required, but")]
    assert "Traceback" not in out and "Traceback" in (run / "events.log").read_text()


def test_one_attempt_at_a_time(tmp_path: Path, dataset: str, new_run: Callable[..., Path], fm: Fm) -> None:
    import fcntl

    run = new_run(tmp_path / "run", dataset)
    with open(run / "lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        code, out = end(fm("pretrain", f"run={run}"))
    assert code == 1 and "another process is training" in out
