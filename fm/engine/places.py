"""Where a run's checkpoints lie, and what else is kept there so that the run can go on without its folder."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fm.config.errors import UserError
from fm.config.load import read
from fm.config.trainer import Better, TrainerConfig
from fm.data.store import Access
from fm.engine.checkpoint import CHECKPOINTS, Checkpoints, CheckpointStore
from fm.engine.remote import AbsentError, Objects, RemoteStore
from fm.engine.retention import Best
from fm.engine.verdict import write_atomically

RUN_FILE = "run.yaml"
COPIES = "fetched"
"""Folder of a run for the step that is copied from object storage."""
_KEPT = "run"
"""Where the run's small files lie, beside its steps."""
_FILES = re.compile(r"attempts\.jsonl|phrases\.json|tokenizer/[\w.-]+")
"""What a run needs of its folder to go on, but for run.yaml, and metrics.jsonl, which lies with each step."""


def open_checkpoints(run_dir: Path, trainer: TrainerConfig, access: Access) -> Checkpoints[Any]:
    """The checkpoints of a run, in its folder or at ``trainer.checkpoint_url``."""
    lower = trainer.best_is is Better.lower
    best = Best(count=trainer.keep_best, metric=trainer.best_metric, lower=lower) if trainer.keep_best else None
    return _open(run_dir, trainer.checkpoint_url, access, trainer.keep_last, trainer.keep_every_steps, best)


def _open(run_dir: Path, url: str, access: Access, *kept: Any) -> Checkpoints[Any]:
    if not url:
        return CheckpointStore(run_dir / CHECKPOINTS, *kept)
    objects = Objects(url, access)
    if objects.local:
        return CheckpointStore(Path(objects.root), *kept)
    return RemoteStore(url, access, run_dir / COPIES, *kept)


def keep_run(run_dir: Path, url: str, access: Access) -> None:
    """Put the run's small files beside its checkpoints.

    Raises:
        PlaceError: the place does not answer, or may not be written to.
    """
    objects = Objects(url, access)
    names = [path.relative_to(run_dir).as_posix() for path in sorted(run_dir.rglob("*")) if path.is_file()]
    for name in [*filter(_FILES.fullmatch, names), RUN_FILE]:
        objects.put(f"{_KEPT}/{name}", (run_dir / name).read_bytes())


def restore_run(url: str, run_dir: Path, access: Access) -> bool:
    """Make the folder of a run anew from what :func:`keep_run` put; False where no run was kept there.

    Raises:
        PlaceError: the place does not answer, or may not be read.
    """
    objects = Objects(url, access)
    try:
        last = objects.whole(f"{_KEPT}/{RUN_FILE}")
    except AbsentError:
        return False
    for name in filter(_FILES.fullmatch, objects.below(_KEPT)):
        (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / name).write_bytes(objects.whole(f"{_KEPT}/{name}"))
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(run_dir / RUN_FILE, last)
    return True


def holds_run(url: str, access: Access) -> bool:
    """Whether a run was kept at a place.

    Raises:
        PlaceError: the place does not answer, or may not be read.
    """
    return RUN_FILE in Objects(url, access).below(_KEPT)


@contextmanager
def run_of(place: str) -> Iterator[tuple[Path, Checkpoints[Any]]]:
    """The folder and the checkpoints of a run, for a while.

    Args:
        place: the run folder, or the URL of its checkpoints, whose small files are then copied.

    Raises:
        UserError: there is no run.
        PlaceError: the place does not answer, or may not be read.
    """
    if "://" not in place:
        folder = Path(place)
        values = read(folder / RUN_FILE)[1] if (folder / RUN_FILE).is_file() else {}
        yield folder, _open(folder, values.get("trainer", {}).get("checkpoint_url", ""), Access())
        return
    with tempfile.TemporaryDirectory(prefix="fm-run-") as scratch:
        if not restore_run(place, Path(scratch), Access()):
            raise UserError(f"from_run={place}: no run there; give a run folder or its trainer.checkpoint_url")
        yield Path(scratch), _open(Path(scratch), place, Access())
