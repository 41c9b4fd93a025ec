"""What a checkpoint holds, and how it is saved and loaded by all ranks together."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from fm.engine.checkpoint import CheckpointError, CheckpointStore
from fm.engine.masters import Masters
from fm.engine.teacher import Teacher
from fm.objectives.student import StudentModule
from fm.parallel.collectives import any_flag, barrier, broadcast_object, rank, world_size

log = logging.getLogger(__name__)

ENGINE_TAG = "engine"
TEACHER_FILE = "teacher.safetensors"
STUDENT_FILE = "student.safetensors"
STATE_FILE = "state.json"
MODEL_FOLDER = "model"


@dataclass(kw_only=True, slots=True)
class RunState:
    """The facts that a checkpoint is tied to."""

    step: int
    """Steps completed: the plan index of the next global batch."""
    stage: int
    precision: str
    world_size: int
    dataset_id: str
    parameters: int
    """Trainable parameters: a changed architecture shows at once."""

    def require_same(self, saved: RunState, accept: str = "") -> None:
        """Refuse a checkpoint of another topology, architecture or dataset (but the dataset that `accept` names).

        Raises:
            CheckpointError: names the first thing that differs, with both values.
        """
        for what, mine, theirs in (
            ("launch.processes", self.world_size, saved.world_size),
            ("trainer.stage", self.stage, saved.stage),
            ("trainer.precision", self.precision, saved.precision),
            ("number of trained parameters", self.parameters, saved.parameters),
            ("dataset id", self.dataset_id, saved.dataset_id),
        ):
            if mine != theirs and not (what == "dataset id" and mine == accept):
                raise CheckpointError(f"the checkpoint at step {saved.step} has {what} {theirs}, this run has {mine}")


def read_state(folder: Path) -> RunState:
    """The facts of a checkpoint.

    Raises:
        CheckpointError: the file is absent or not of this version.
    """
    try:
        return RunState(**json.loads((folder / STATE_FILE).read_text()))
    except (OSError, ValueError, TypeError) as err:
        raise CheckpointError(f"checkpoint {folder}: {STATE_FILE} cannot be read ({type(err).__name__})") from err


def save_checkpoint(
    store: CheckpointStore, state: RunState, *, engine: Any, masters: Masters, teacher: Teacher, student: StudentModule
) -> bool:
    """Save one step; a collective, on the main thread of every rank.

    Beside DeepSpeed's own files (exact resume) the float32 teacher and student lie as safetensors (export, no pickle).

    Returns:
        False where any rank could not write (disk full, read-only): training goes on, earlier checkpoints are as they
        were.
    """
    partial: Path | None = broadcast_object(_attempt(store.begin, state.step) if rank() == 0 else None)
    if partial is None:
        return False
    failed = False
    weights = masters.read()
    try:
        engine.save_checkpoint(str(partial), tag=ENGINE_TAG, save_latest=False)
        if rank() == 0:
            frozen = {name: p for name, p in teacher.state().items() if name not in weights}
            save_file({n: w.contiguous().cpu() for n, w in {**frozen, **weights}.items()}, partial / STUDENT_FILE)
            save_file({name: w.contiguous().cpu() for name, w in teacher.state().items()}, partial / TEACHER_FILE)
            (partial / STATE_FILE).write_text(json.dumps(asdict(state), sort_keys=True))
            student.fm.config.save_pretrained(partial / MODEL_FOLDER)
    except (OSError, RuntimeError) as err:
        log.error("step %d could not be saved on rank %d: %s", state.step, rank(), err)
        failed = True
    if not any_flag(failed) and rank() == 0:
        failed = _attempt(store.commit, state.step, partial) is None
    failed = any_flag(failed)
    if failed and rank() == 0:
        store.discard(state.step)
    barrier()
    return not failed


def load_checkpoint(folder: Path, state: RunState, *, engine: Any, teacher: Teacher, accept: str = "") -> int:
    """Load a step that the store has verified; a collective. `accept`: a dataset id that may differ from the saved one.

    Returns:
        Steps completed.

    Raises:
        CheckpointError: the checkpoint belongs to another topology, architecture or dataset, or DeepSpeed finds it
            wanting.
    """
    saved = read_state(folder)
    state.require_same(saved, accept)
    path, _ = engine.load_checkpoint(str(folder), tag=ENGINE_TAG, load_lr_scheduler_states=False)
    if path is None:
        raise CheckpointError(f"checkpoint {folder}: DeepSpeed could not load it")
    weights = load_file(folder / TEACHER_FILE)
    if set(weights) != set(teacher.state()):
        raise CheckpointError(f"checkpoint {folder}: the teacher has other parameters than this run's")
    teacher.copy_from(weights)
    barrier()
    return saved.step


def describe(*, step: int, stage: int, precision: str, dataset_id: str, student: nn.Module) -> RunState:
    """The facts of the run as it stands now."""
    return RunState(
        step=step,
        stage=stage,
        precision=precision,
        world_size=world_size(),
        dataset_id=dataset_id,
        parameters=sum(p.numel() for p in student.parameters() if p.requires_grad),
    )


def _attempt(action: Any, *args: Any) -> Path | None:
    """The result of a file operation, or None where the disk refused it."""
    try:
        result: Path = action(*args)
        return result
    except OSError as err:
        log.error("checkpoint not written, training goes on: %s", err)
        return None
