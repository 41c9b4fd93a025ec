"""The one place that decides whether a checkpoint is good.

A save writes ``step-N.tmp/``, makes every file durable, lists sizes and SHA-256 in ``manifest.json``, renames the
folder to ``step-N/`` and writes ``COMMITTED`` (the hash of the manifest) last; only then older steps are pruned.
Whatever is killed in between leaves the previous checkpoint as it was.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fm.config.errors import UserError
from fm.engine.verdict import fsync_folder, write_atomically

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""Folder of a run's checkpoints."""
STATE_FILE = "state.json"
MANIFEST = "manifest.json"
COMMITTED = "COMMITTED"
_ROOM = 3
"""Checkpoints that there should be room for; with less the log warns."""
_STEP = re.compile(r"step-(\d{8})")


class CheckpointError(UserError):
    """A checkpoint that cannot be used, or none that can."""


class CheckpointStore:
    """The checkpoints of one run: a folder with one subfolder per saved step."""

    def __init__(self, root: Path, keep_last: int = 2, keep_every_steps: int = 0) -> None:
        """Open the folder; it may be absent.

        Args:
            root: folder of the checkpoints.
            keep_last: committed steps that pruning leaves.
            keep_every_steps: pruning leaves the multiples of this too; 0: none.
        """
        self.root = root
        self._keep_last = keep_last
        self._keep_every = keep_every_steps

    def folder(self, step: int) -> Path:
        """Where a step's checkpoint lies, or would lie."""
        return self.root / f"step-{step:08d}"

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
        partial = self.root / f"step-{step:08d}.tmp"
        partial.mkdir()
        return partial

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
            files[path.relative_to(partial).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
        manifest = json.dumps({"step": step, "files": files}, sort_keys=True).encode()
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
        shutil.rmtree(self.root / f"step-{step:08d}.tmp", ignore_errors=True)

    def facts(self, step: int) -> dict[str, Any]:
        """What a step says of itself: stage, precision, ranks, dataset; empty where that cannot be read."""
        try:
            found = json.loads((self.folder(step) / STATE_FILE).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def steps(self) -> list[int]:
        """Committed steps, ascending; whether their files are whole is :meth:`verify`'s matter."""
        found = [_STEP.fullmatch(path.name) for path in self.root.glob("step-*")] if self.root.is_dir() else []
        return sorted(int(m[1]) for m in found if m and (self.folder(int(m[1])) / COMMITTED).is_file())

    def verify(self, step: int) -> Path:
        """Check every file of a step against the committed manifest.

        Returns:
            The step's folder.

        Raises:
            CheckpointError: not committed, a file is missing, was added, or has other content.
        """
        folder = self.folder(step)
        try:
            manifest = (folder / MANIFEST).read_bytes()
            if hashlib.sha256(manifest).hexdigest() != (folder / COMMITTED).read_text().strip():
                raise CheckpointError(f"checkpoint {folder}: its manifest was changed after the commit")
            listed = json.loads(manifest)["files"]
        except (OSError, ValueError, KeyError) as err:
            if isinstance(err, CheckpointError):
                raise
            raise CheckpointError(f"checkpoint {folder}: not committed ({type(err).__name__})") from err
        present = {p.relative_to(folder).as_posix(): p for p in _files(folder) if p.name not in (MANIFEST, COMMITTED)}
        if difference := sorted(set(present) ^ set(listed)):
            what = "is missing" if difference[0] in listed else "is in no manifest"
            raise CheckpointError(f"checkpoint {folder}: {difference[0]} {what}")
        for name, path in present.items():
            if path.stat().st_size != listed[name]["bytes"]:
                raise CheckpointError(
                    f"checkpoint {folder}: {name} has {path.stat().st_size} bytes, not {listed[name]['bytes']}"
                )
            with open(path, "rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != listed[name]["sha256"]:
                    raise CheckpointError(f"checkpoint {folder}: {name} does not have the SHA-256 of the manifest")
        return folder

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
                return step, self.verify(step)
            except CheckpointError as err:
                log.error("%s; falling back to the one before", err)
        if steps:
            raise CheckpointError(
                f"all {len(steps)} checkpoints under {self.root} are damaged (see events.log): "
                "restore one from a copy, or start a new run; this run is never restarted from zero by itself"
            )
        if required:
            raise CheckpointError(f"trainer.resume=required, but {self.root} holds no committed checkpoint")
        return None

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

    def _prune(self) -> None:
        for step in self.steps()[: -self._keep_last]:
            if self._keep_every and step % self._keep_every == 0:
                continue
            # COMMITTED goes first: a deletion that is cut short leaves no checkpoint that calls itself good.
            (self.folder(step) / COMMITTED).unlink()
            shutil.rmtree(self.folder(step))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
