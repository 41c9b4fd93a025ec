"""The one place that decides whether a checkpoint is good.

A save writes ``step-N.tmp/``, makes every file durable, lists sizes and SHA-256 in ``manifest.json``, renames the
folder to ``step-N/`` and writes ``COMMITTED`` (the hash of the manifest) last; only then older steps are pruned.
Whatever is killed in between leaves the previous checkpoint as it was. Object storage knows no rename:
:mod:`fm.engine.remote` does the same without.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fm.engine.manifest import (
    COMMITTED,
    MANIFEST,
    CheckpointError,
    Entry,
    check_hash,
    check_sizes,
    read_manifest,
    step_name,
    step_of,
    write_manifest,
)
from fm.engine.retention import Best, superfluous
from fm.engine.verdict import fsync_folder, write_atomically

if TYPE_CHECKING:  # it brings torch, which fm checkpoint list does without
    from fm.engine.snapshot import Snapshot

__all__ = ["CHECKPOINTS", "STATE_FILE", "CheckpointError", "CheckpointStore", "Checkpoints", "Size"]

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints."""
STATE_FILE = "state.json"
_ROOM = 3
"""Checkpoints that there should be room for; with less the log warns."""
_MARK = "rank-{:05d}.written"

Place = TypeVar("Place")
"""Where a save that is not committed yet is written to."""


@dataclass(kw_only=True, slots=True)
class Size:
    """What a committed step takes up, and since when."""

    bytes: int
    saved: float
    """Seconds since the epoch."""


class Checkpoints(ABC, Generic[Place]):
    """The checkpoints of one run, wherever they lie."""

    look_seconds: float
    """Between two looks for what the other ranks have written."""

    def __init__(self, where: str, keep_last: int, keep_every_steps: int, best: Best | None) -> None:
        """Take what pruning leaves.

        Args:
            where: the place, for messages.
            keep_last: committed steps that stay.
            keep_every_steps: the multiples of this stay too; 0: none.
            best: the best ones by a gauge stay too; None: none.
        """
        self.where = where
        self._keep_last = keep_last
        self._keep_every = keep_every_steps
        self._best = best

    @abstractmethod
    def begin(self, step: int, needed_bytes: int = 0) -> Place:
        """Prepare a save on rank 0; every rank hands the result to :meth:`write`.

        Args:
            step: steps completed.
            needed_bytes: what is going to be written.

        Raises:
            OSError: it is known already that it cannot be written.
        """

    @abstractmethod
    def write(self, place: Place, snapshot: Snapshot, rank: int) -> None:
        """Write one rank's files and a mark that they are there."""

    @abstractmethod
    def all_written(self, place: Place, ranks: int) -> bool:
        """Whether the marks of all ranks are there."""

    @abstractmethod
    def commit(self, step: int, place: Place) -> Any:
        """Turn what is written into the step's checkpoint, then prune older ones."""

    @abstractmethod
    def discard(self, step: int) -> None:
        """Remove what a save that failed has written; where that is impossible the next save does it."""

    @abstractmethod
    def steps(self) -> list[int]:
        """Committed steps, ascending; whether their files are whole is :meth:`verify`'s matter."""

    @abstractmethod
    def facts(self, step: int) -> dict[str, Any]:
        """What a step says of itself: stage, precision, ranks, dataset; empty where that cannot be read."""

    @abstractmethod
    def size(self, step: int) -> Size:
        """What a committed step takes up."""

    @abstractmethod
    def verify(self, step: int) -> Any:
        """Check every file of a step against the committed manifest.

        Raises:
            CheckpointError: not committed, a file is missing, was added, or has other content.
        """

    @abstractmethod
    def fetch(self, step: int) -> Path:
        """A folder on this machine with the files of a step, verified.

        Raises:
            CheckpointError: as :meth:`verify`.
        """

    @abstractmethod
    def remove(self, step: int) -> None:
        """Delete a committed step, ``COMMITTED`` first: cut short, it leaves none that calls itself good."""

    def release(self) -> None:
        """Give up what :meth:`fetch` copied."""
        return

    def newest(self, required: bool) -> tuple[int, Path] | None:
        """The newest step that verifies, with its folder; each bad one on the way is reported as an error in the log.

        Args:
            required: whether a run without any committed checkpoint is an error.

        Returns:
            None where nothing was ever committed and nothing is required.

        Raises:
            CheckpointError: every committed checkpoint is bad, or one is required and there is none.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return step, self.fetch(step)
            except CheckpointError as err:
                log.error("%s; falling back to the one before", err)
        if steps:
            raise CheckpointError(
                f"all {len(steps)} checkpoints under {self.where} are damaged (see events.log): "
                "restore one from a copy, or start a new run; this run is never restarted from zero by itself"
            )
        if required:
            raise CheckpointError(f"trainer.resume=required, but {self.where} holds no committed checkpoint")
        return None

    def chosen(self, step: int) -> Path:
        """The folder of a step that was asked for.

        Raises:
            CheckpointError: it is not there (the message lists those that are), or damaged.
        """
        steps = self.steps()
        if step not in steps:
            there = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(f"step={step}: not committed in {self.where}; the steps there: {there}")
        return self.fetch(step)

    def best(self) -> int | None:
        """The best step by the gauge that the best are kept by; None where no checkpoint has it."""
        sign = -1.0 if self._best is not None and self._best.lower else 1.0
        scored = [(sign * value, step) for step in self.steps() if (value := self._score(step)) is not None]
        return max(((value, step) for value, step in scored if math.isfinite(value)), default=(0.0, None))[1]

    def _prune(self) -> None:
        for step in superfluous(self.steps(), self._keep_last, self._keep_every, self._best, self._score):
            self.remove(step)

    def _score(self, step: int) -> float | None:
        gauges = self.facts(step).get("gauges")
        value = gauges.get(self._best.metric) if self._best is not None and isinstance(gauges, dict) else None
        return float(value) if isinstance(value, int | float) else None


class CheckpointStore(Checkpoints[Path]):
    """The checkpoints of one run on disk: a folder with one subfolder per saved step."""

    look_seconds = 0.02

    def __init__(self, root: Path, keep_last: int = 2, keep_every_steps: int = 0, best: Best | None = None) -> None:
        """Open the folder `root`; it may be absent. The rest is what pruning leaves, see :class:`Checkpoints`."""
        super().__init__(str(root), keep_last, keep_every_steps, best)
        self.root = root

    def folder(self, step: int) -> Path:
        """Where a step's checkpoint lies, or would lie."""
        return self.root / step_name(step)

    def begin(self, step: int, needed_bytes: int = 0) -> Path:
        """An empty scratch folder for a step; what earlier, interrupted saves left behind is removed.

        Args:
            step: steps completed.
            needed_bytes: what is going to be written; little room left for the next ones is told of in the log.

        Raises:
            OSError: the disk is full, or will be before the step is written.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        for leftover in self.root.glob("*.tmp"):
            shutil.rmtree(leftover)
        self._look_for_space(needed_bytes)
        partial = self.root / f"{step_name(step)}.tmp"
        partial.mkdir()
        return partial

    def write(self, place: Path, snapshot: Snapshot, rank: int) -> None:
        """Write one rank's files and its mark."""
        snapshot.write(place)
        (place / _MARK.format(rank)).touch()

    def all_written(self, place: Path, ranks: int) -> bool:
        """Whether the marks of all ranks are there; then they are removed."""
        marks = [place / _MARK.format(number) for number in range(ranks)]
        if not all(mark.exists() for mark in marks):
            return False
        for mark in marks:
            mark.unlink()
        return True

    def commit(self, step: int, partial: Path) -> Path:
        """Turn a complete scratch folder into the step's checkpoint, then prune older ones.

        Raises:
            OSError: the disk is full or read-only; earlier checkpoints are as they were.
        """
        files = {}
        for path in _files(partial):
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            files[path.relative_to(partial).as_posix()] = Entry(bytes=path.stat().st_size, sha256=digest)
        manifest = write_manifest(step, files)
        for folder in {path.parent for path in _files(partial)}:
            fsync_folder(folder)
        write_atomically(partial / MANIFEST, manifest)
        final = self.folder(step)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        fsync_folder(self.root)
        write_atomically(final / COMMITTED, hashlib.sha256(manifest).hexdigest().encode())
        self._prune()
        return final

    def discard(self, step: int) -> None:
        """Remove the scratch folder of a save that failed."""
        shutil.rmtree(self.root / f"{step_name(step)}.tmp", ignore_errors=True)

    def facts(self, step: int) -> dict[str, Any]:
        """What a step says of itself: stage, precision, ranks, dataset; empty where that cannot be read."""
        try:
            found = json.loads((self.folder(step) / STATE_FILE).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def steps(self) -> list[int]:
        """Committed steps, ascending; whether their files are whole is :meth:`verify`'s matter."""
        found = [step_of(path.name) for path in self.root.glob("step-*")] if self.root.is_dir() else []
        return sorted(step for step in found if step is not None and (self.folder(step) / COMMITTED).is_file())

    def verify(self, step: int) -> Path:
        """Check every file of a step against the committed manifest.

        Returns:
            The step's folder.

        Raises:
            CheckpointError: not committed, a file is missing, was added, or has other content.
        """
        folder = self.folder(step)
        try:
            manifest, committed = (folder / MANIFEST).read_bytes(), (folder / COMMITTED).read_bytes()
        except OSError as err:
            raise CheckpointError(f"checkpoint {folder}: not committed ({type(err).__name__})") from err
        listed = read_manifest(str(folder), manifest, committed)
        present = {p.relative_to(folder).as_posix(): p for p in _files(folder) if p.name not in (MANIFEST, COMMITTED)}
        check_sizes(str(folder), {name: path.stat().st_size for name, path in present.items()}, listed)
        for name, path in present.items():
            with open(path, "rb") as stream:
                check_hash(str(folder), name, hashlib.file_digest(stream, "sha256").hexdigest(), listed[name])
        return folder

    def fetch(self, step: int) -> Path:
        """The step's own folder, verified."""
        return self.verify(step)

    def size(self, step: int) -> Size:
        """What a committed step takes up."""
        folder = self.folder(step)
        taken = sum(path.stat().st_size for path in _files(folder))
        return Size(bytes=taken, saved=(folder / COMMITTED).stat().st_mtime)

    def remove(self, step: int) -> None:
        """Delete a committed step, ``COMMITTED`` first."""
        (self.folder(step) / COMMITTED).unlink()
        shutil.rmtree(self.folder(step))

    def _look_for_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.root).free
        if needed > free:
            raise OSError(
                errno.ENOSPC,
                f"{needed / 1e6:.0f} MB are needed in {self.root}, which has {free / 1e6:.0f} MB free: free some "
                "space, or lower trainer.keep_last",
            )
        if needed and free < _ROOM * needed:
            log.warning(
                "%s has %.0f MB free, room for %d more checkpoints of %.0f MB: free some space soon",
                self.root,
                free / 1e6,
                free // needed,
                needed / 1e6,
            )


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
