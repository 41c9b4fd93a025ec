"""Faults that strike a worker from within, at a phase of its training: real signals to real processes."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

import fm.engine.module as module
import fm.engine.snapshot as snapshot
import fm.pretrain.run as pretrain_run
from fm.engine import checkpoint, remote
from fm.engine.module import TrainingModule
from fm.engine.phases import Phases

STEP_PHASES = ("forward", "all-reduce", "backward", "optimizer", "teacher", "probe", "record", "save")
WRITE_PHASES = ("writing", "manifest", "rename", "commit", "prune")
"""Of a save, in the background: a file is written; before the manifest, the rename, COMMITTED, the pruning."""
UPLOAD_PHASES = {"upload": "", "mark": "/rank-", "put-manifest": "/manifest.json", "put-commit": "/COMMITTED"}
"""Of a save to object storage: before an object is put, by a part of its name."""


def observe(run_dir: Path, rank: int) -> None:
    """Write down which samples each step of this rank trains on."""
    original = TrainingModule.training_step

    def step(own: TrainingModule, batch: Any) -> None:
        original(own, batch)
        with open(run_dir / f"seen-{rank}.jsonl", "a") as stream:
            keys = [key for micro in batch for key in micro.keys]
            stream.write(json.dumps({"step": own.completed_steps, "keys": keys}) + "\n")

    TrainingModule.training_step = step  # type: ignore[method-assign]


def inject(*, rank: int | str, phase: str, turn: int, deed: str) -> None:
    """Do a deed when a phase is entered for the `turn`-th time in this attempt.

    Args:
        rank: for the caller, which process this is for.
        phase: one of :data:`STEP_PHASES`, :data:`WRITE_PHASES` or :data:`UPLOAD_PHASES`; "loss" with the deed "spike".
        turn: counted from 1.
        deed: name of a signal to this process, or one of `DEEDS`.
    """
    del rank
    if phase == "loss":
        spike(turn)
        return
    act = DEEDS.get(deed) or (lambda: os.kill(os.getpid(), getattr(signal, deed)))
    left = turn

    def strike() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            act()

    if phase == "all-reduce":
        module.sum_over_ranks = before(module.sum_over_ranks, strike)
    elif phase in STEP_PHASES:
        enter = Phases.enter

        def entered(own: Phases, name: str) -> None:
            changed = name != own.current
            enter(own, name)
            if name == phase and changed:
                strike()

        Phases.enter = entered  # type: ignore[method-assign]
    elif phase == "writing":
        snapshot._sync = before(snapshot._sync, strike)
    elif phase == "rename":
        rename = Path.rename

        def renamed(path: Path, target: Path) -> Path:
            if path.name.startswith("step-"):
                strike()
            return rename(path, target)

        Path.rename = renamed  # type: ignore[method-assign,assignment]
    elif phase == "prune":
        checkpoint.Checkpoints._prune = before(checkpoint.Checkpoints._prune, strike)  # type: ignore[method-assign]
    elif phase in UPLOAD_PHASES:
        sought, put = UPLOAD_PHASES[phase], remote.Objects.put

        def putting(objects: remote.Objects, name: str, payload: bytes) -> None:
            if name.startswith("step-") and sought in name:
                strike()
            put(objects, name, payload)

        remote.Objects.put = putting  # type: ignore[method-assign]
    else:
        name, write = {"manifest": "manifest.json", "commit": "COMMITTED"}[phase], checkpoint.write_atomically

        def written(path: Path, payload: bytes) -> None:
            if path.name == name:
                strike()
            write(path, payload)

        checkpoint.write_atomically = written


def spike(turn: int) -> None:
    """Make the loss of one step a thousand times what it is."""
    build = pretrain_run.build_objective

    def built(config: Any) -> Any:
        objective = build(config)

        def run(student: Any, teacher: Any, batch: Any, gather: Any) -> Any:
            loss, report = objective(student, teacher, batch, gather)
            return loss * (1000.0 if batch.step == turn - 1 else 1.0), report

        return run

    pretrain_run.build_objective = built


def before(function: Callable[..., Any], strike: Callable[[], None]) -> Callable[..., Any]:
    def called(*args: Any, **kwargs: Any) -> Any:
        strike()
        return function(*args, **kwargs)

    return called


def kill_a_data_worker() -> None:
    psutil.Process().children()[0].kill()


def fill_the_disk() -> None:
    """The operating system refuses every longer file from now on, as a full disk would."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


def terminate_twice() -> None:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)


DEEDS: dict[str, Callable[[], None]] = {
    "kill-data-worker": kill_a_data_worker,
    "fill-disk": fill_the_disk,
    "terminate-twice": terminate_twice,
}
