"""What a checkpoint holds, and how it is saved and loaded by all ranks together.

Everything is float32 safetensors under parameter names, so that another number of ranks, another ZeRO stage or another
precision can go on with it, and nothing is unpickled: the student's masters and the teacher whole, AdamW's moments as
each rank holds them (:mod:`fm.engine.shard`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from fm.engine.checkpoint import STATE_FILE, CheckpointError
from fm.engine.masters import Masters
from fm.engine.shard import OptimizerShard, ShardError
from fm.engine.snapshot import Snapshot
from fm.engine.teacher import Teacher
from fm.objectives.student import StudentModule
from fm.parallel.collectives import barrier, rank, world_size
from fm.parallel.slices import size_of, whole_to_write

log = logging.getLogger(__name__)

TEACHER_FILE = "teacher.safetensors"
STUDENT_FILE = "student.safetensors"
MODEL_FOLDER = "model"
MOMENTS_FILE = "moments-{:05d}-of-{:05d}.safetensors"
_BYTES_PER_PARAMETER = 16
"""Master, teacher and two moments, float32 each."""


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
    counts: dict[str, int] = field(default_factory=dict)
    """What is trained on, counted: studies and patients."""
    recent_losses: list[float] = field(default_factory=list)
    """What the spike guard looks back on."""
    gauges: dict[str, float] = field(default_factory=dict)
    """Numbers of the step's row of metrics: the best checkpoints are chosen by one of them."""
    loss_scaling: dict[str, float] = field(default_factory=dict)
    """Where the search for fp16's loss scale stands; empty in other precisions."""

    @property
    def total_bytes(self) -> int:
        """About what all ranks write."""
        return _BYTES_PER_PARAMETER * self.parameters

    def require_same(self, saved: RunState, accept: str = "") -> None:
        """Refuse a checkpoint of another architecture or dataset (but the dataset that `accept` names).

        Raises:
            CheckpointError: names the first thing that differs, with both values.
        """
        for what, mine, theirs in (
            ("number of trained parameters", self.parameters, saved.parameters),
            ("dataset id", self.dataset_id, saved.dataset_id),
        ):
            if mine != theirs and not (what == "dataset id" and mine == accept):
                raise CheckpointError(f"the checkpoint at step {saved.step} has {what} {theirs}, this run has {mine}")

    def changes(self, saved: RunState) -> list[str]:
        """How the layout differs from the saved one, which changes no result but by rounding."""
        return [
            f"{what} {theirs} → {mine}"
            for what, mine, theirs in (
                ("launch.processes", self.world_size, saved.world_size),
                ("trainer.stage", self.stage, saved.stage),
                ("trainer.precision", self.precision, saved.precision),
            )
            if mine != theirs
        ]


def read_state(folder: Path) -> RunState:
    """The facts of a checkpoint.

    Raises:
        CheckpointError: the file is absent or not of this version.
    """
    try:
        return RunState(**json.loads((folder / STATE_FILE).read_text()))
    except (OSError, ValueError, TypeError) as err:
        raise CheckpointError(f"checkpoint {folder}: {STATE_FILE} cannot be read ({type(err).__name__})") from err


def capture(
    state: RunState, *, masters: Masters, teacher: Teacher, shard: OptimizerShard, student: StudentModule
) -> Snapshot:
    """Copy what this rank has to write; a collective. Rank 0 writes what all ranks have."""
    snapshot = Snapshot()
    moments, metadata = shard.tensors()
    snapshot.add(MOMENTS_FILE.format(rank(), state.world_size), moments, metadata)
    weights, averages = _on_host_of_rank_0(masters.whole()), _on_host_of_rank_0(teacher.whole())
    if rank() == 0:
        # Frozen weights have no master: the teacher's copy of them is float32 whatever the engine made of the student.
        frozen = {name: weight for name, weight in averages.items() if name not in weights}
        snapshot.tensors[STUDENT_FILE] = {**_on_host_of_rank_0(_buffers(student).items()), **frozen, **weights}
        snapshot.tensors[TEACHER_FILE] = averages
        snapshot.metadata |= {STUDENT_FILE: {}, TEACHER_FILE: {}}
        snapshot.texts[STATE_FILE] = json.dumps(asdict(state), sort_keys=True)
        snapshot.texts[f"{MODEL_FOLDER}/config.json"] = student.fm.config.to_json_string()
    return snapshot


def load_checkpoint(
    folder: Path,
    state: RunState,
    *,
    teacher: Teacher,
    shard: OptimizerShard,
    student: StudentModule,
    accept: str = "",
) -> RunState:
    """Load a step that the store has verified; a collective. `accept`: a dataset id that may differ from the saved one.

    Returns:
        The facts of the step.

    Raises:
        CheckpointError: the checkpoint belongs to another architecture or dataset, or does not hold what it should.
    """
    saved = read_state(folder)
    state.require_same(saved, accept)
    with safe_open(folder / TEACHER_FILE, "pt") as stored:
        if set(stored.keys()) != teacher.names:
            raise CheckpointError(f"checkpoint {folder}: the teacher has other parameters than this run's")
        if rank() == 0 and (changes := state.changes(saved)):
            log.warning("the layout has changed since step %d: %s", saved.step, ", ".join(changes))
        _load_shard(folder, saved, shard, student)
        for name in stored.keys():  # noqa: SIM118 - no mapping
            teacher.load(name, stored.get_tensor(name))
    barrier()
    return saved


@torch.no_grad()
def _load_shard(folder: Path, saved: RunState, shard: OptimizerShard, student: StudentModule) -> None:
    stored = load_file(folder / STUDENT_FILE)
    frozen = {name: p for name, p in student.named_parameters() if not p.requires_grad}
    with whole_to_write(frozen.values()):
        for name, value in {**_buffers(student), **frozen}.items():
            if name in stored:
                value.copy_(stored[name])
    moments = [folder / MOMENTS_FILE.format(number, saved.world_size) for number in range(saved.world_size)]
    try:
        shard.load(folder / STUDENT_FILE, moments)
    except (ShardError, OSError) as err:
        raise CheckpointError(f"checkpoint {folder}: {err}") from err


def describe(*, step: int, stage: int, precision: str, dataset_id: str, student: nn.Module) -> RunState:
    """The facts of the run as it stands now."""
    return RunState(
        step=step,
        stage=stage,
        precision=precision,
        world_size=world_size(),
        dataset_id=dataset_id,
        parameters=sum(size_of(p) for p in student.parameters() if p.requires_grad),
    )


def _buffers(student: nn.Module) -> dict[str, Tensor]:
    """The buffers that are saved."""
    own = {name for name, _ in student.named_buffers()}
    return {name: value for name, value in student.state_dict().items() if name in own}


def _on_host_of_rank_0(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Copies on rank 0, nothing elsewhere; one at a time, as at ZeRO-3 each is whole for a moment only."""
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in tensors
        if rank() == 0
    }
