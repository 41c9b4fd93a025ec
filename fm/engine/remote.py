"""Checkpoints in object storage: the commit of :mod:`fm.engine.checkpoint` where there is no rename.

Every rank puts its files under ``step-N/`` and then a mark with their sizes and SHA-256. When all marks are there, rank
0 removes what earlier, interrupted saves left in that place, writes ``manifest.json`` and last ``COMMITTED``; only then
older steps are pruned, ``COMMITTED`` first. Nothing is read back but names and sizes: the hashes are those of the bytes
that were sent. Requests are repeated as in :mod:`fm.data.store`; credentials come from the environment alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import secrets
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fm.config.errors import UserError
from fm.data.index import publish
from fm.data.store import Access, Store
from fm.engine.checkpoint import STATE_FILE, Checkpoints, Size
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
from fm.engine.retention import Best

if TYPE_CHECKING:  # it brings torch, which fm checkpoint list does without
    from fm.engine.snapshot import Snapshot

log = logging.getLogger(__name__)

_CHUNK_BYTES = 2**26
_SAVED = ("LastModified", "mtime", "updated", "last_modified")
"""What S3, a local disk, GCS and Azure call the time of writing."""


class PlaceError(UserError):
    """A place for checkpoints that does not answer, or lets nobody in: no sign of damage."""


class AbsentError(PlaceError):
    """An object that is not there."""


class Objects(Store):
    """Reads, writes and removes the objects below a URL."""

    failure = PlaceError
    missing = AbsentError
    remedy = "check trainer.checkpoint_url"

    def put(self, name: str, payload: bytes) -> None:
        """Write an object whole or not at all.

        Raises:
            PlaceError: not written after all attempts, or not allowed.
        """
        self._attempt(name, lambda: publish(self.files, f"{self.root}/{name}", payload), deed="written")

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; one that is gone already is no error.

        Raises:
            PlaceError: as :meth:`put`.
        """
        for name in names:
            with contextlib.suppress(AbsentError):
                self._attempt(name, partial(self.files.rm_file, f"{self.root}/{name}"), deed="removed")

    def below(self, prefix: str = "") -> dict[str, dict[str, Any]]:
        """Every object below a prefix, by its name from there on, with what the store tells of it.

        Raises:
            PlaceError: as :meth:`put`.
        """
        top = f"{self.root}/{prefix}".rstrip("/")

        def find() -> dict[str, dict[str, Any]]:
            self.files.invalidate_cache()
            found: dict[str, dict[str, Any]] = self.files.find(top, detail=True)
            return found

        try:
            found = self._attempt(prefix, find, deed="listed")
        except AbsentError:
            return {}
        # Some drivers lead a path with a slash that others leave out.
        start = len(top.lstrip("/")) + 1
        return {name.lstrip("/")[start:]: about for name, about in found.items() if about["type"] == "file"}

    def stream(self, name: str, size: int) -> Iterator[bytes]:
        """The bytes of an object in pieces, each asked for again where it does not come.

        Raises:
            PlaceError: as :meth:`put`.
        """
        for first in range(0, size, _CHUNK_BYTES):
            yield self._ranged(name, first, min(_CHUNK_BYTES, size - first), "the resume")


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """A save on its way: its marks bear a word that no earlier save's do."""

    step: int
    word: str

    def mark(self, rank: int) -> str:
        """Name of a rank's mark within the step's folder."""
        return f"rank-{rank:05d}.{self.word}.json"


class RemoteStore(Checkpoints[Upload]):
    """The checkpoints of one run below a URL of object storage."""

    look_seconds = 0.5

    def __init__(
        self,
        url: str,
        access: Access,
        copies: Path,
        keep_last: int = 2,
        keep_every_steps: int = 0,
        best: Best | None = None,
    ) -> None:
        """Open the place; nothing is asked of it yet.

        Args:
            url: where the steps lie.
            access: how often, and how long, requests are repeated.
            copies: local folder for the step that a run resumes from.
            keep_last: as for :class:`fm.engine.checkpoint.Checkpoints`, like the rest.
            keep_every_steps: multiples of this stay.
            best: the best by a gauge stay.
        """
        super().__init__(url, keep_last, keep_every_steps, best)
        self._objects = Objects(url, access)
        self._copies = copies

    def begin(self, step: int, needed_bytes: int = 0) -> Upload:
        """A new word for the marks; nothing is asked of the store, for which all ranks would have to wait."""
        return Upload(step=step, word=secrets.token_hex(4))

    def write(self, place: Upload, snapshot: Snapshot, rank: int) -> None:
        """Put one rank's files, then its mark, which lists them."""
        files: dict[str, Entry] = {}
        for name, payload in snapshot.payloads():
            self._objects.put(f"{step_name(place.step)}/{name}", payload)
            files[name] = Entry(bytes=len(payload), sha256=hashlib.sha256(payload).hexdigest())
        mark = {name: asdict(entry) for name, entry in files.items()}
        self._objects.put(f"{step_name(place.step)}/{place.mark(rank)}", json.dumps(mark, sort_keys=True).encode())

    def all_written(self, place: Upload, ranks: int) -> bool:
        """Whether the marks of all ranks are there."""
        present = self._objects.below(step_name(place.step))
        return all(place.mark(rank) in present for rank in range(ranks))

    def commit(self, step: int, place: Upload) -> None:
        """Make what all ranks have put the step's checkpoint, then prune older ones.

        Raises:
            PlaceError: the store does not answer; earlier checkpoints are as they were.
            CheckpointError: an object is not what was sent.
        """
        folder = step_name(step)
        present = self._objects.below(folder)
        files: dict[str, Entry] = {}
        for name in present:
            if place.word in name:
                mark = json.loads(self._objects.whole(f"{folder}/{name}"))
                files |= {listed: Entry(**entry) for listed, entry in mark.items()}
        # COMMITTED of a damaged step goes first; then the marks, and files of an earlier save in this place.
        others = sorted(set(present) - set(files), key=lambda name: name != COMMITTED)
        self._objects.remove(f"{folder}/{name}" for name in others)
        sizes = {name: int(about["size"]) for name, about in present.items() if name in files}
        check_sizes(f"{self.where}/{folder}", sizes, files)
        manifest = write_manifest(step, files)
        self._objects.put(f"{folder}/{MANIFEST}", manifest)
        self._objects.put(f"{folder}/{COMMITTED}", hashlib.sha256(manifest).hexdigest().encode())
        self._sweep()
        self._prune()

    def discard(self, step: int) -> None:
        """Remove what a save that failed has put."""
        folder = step_name(step)
        present = self._objects.below(folder)
        if COMMITTED not in present:
            self._objects.remove(f"{folder}/{name}" for name in present)

    def steps(self) -> list[int]:
        """Committed steps, ascending."""
        found = [step_of(name.removesuffix(f"/{COMMITTED}")) for name in self._objects.below()]
        return sorted(step for step in found if step is not None)

    def facts(self, step: int) -> dict[str, Any]:
        """What a step says of itself; empty where that cannot be read."""
        try:
            found = json.loads(self._objects.whole(f"{step_name(step)}/{STATE_FILE}"))
        except (AbsentError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def size(self, step: int) -> Size:
        """What a committed step takes up."""
        present = self._objects.below(step_name(step))
        saved = next((present[COMMITTED][key] for key in _SAVED if key in present[COMMITTED]), 0.0)
        seconds = saved.timestamp() if hasattr(saved, "timestamp") else float(saved)
        return Size(bytes=sum(int(about["size"]) for about in present.values()), saved=seconds)

    def verify(self, step: int) -> None:
        """Check every object of a step against the committed manifest; nothing is kept."""
        for name, entry in self._listed(step).items():
            digest = hashlib.sha256()
            for chunk in self._objects.stream(f"{step_name(step)}/{name}", entry.bytes):
                digest.update(chunk)
            check_hash(f"{self.where}/{step_name(step)}", name, digest.hexdigest(), entry)

    def fetch(self, step: int) -> Path:
        """Copy a step to this machine's `copies`, verified on the way; a copy made before goes."""
        self.release()
        target = self._copies / step_name(step)
        for name, entry in self._listed(step).items():
            path, digest = target / name, hashlib.sha256()
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as file:
                for chunk in self._objects.stream(f"{step_name(step)}/{name}", entry.bytes):
                    digest.update(chunk)
                    file.write(chunk)
            check_hash(f"{self.where}/{step_name(step)}", name, digest.hexdigest(), entry)
        return target

    def release(self) -> None:
        """Delete what was copied."""
        shutil.rmtree(self._copies, ignore_errors=True)

    def remove(self, step: int) -> None:
        """Delete a committed step, ``COMMITTED`` first."""
        folder = step_name(step)
        present = sorted(self._objects.below(folder), key=lambda name: name != COMMITTED)
        self._objects.remove(f"{folder}/{name}" for name in present)

    def _listed(self, step: int) -> dict[str, Entry]:
        """The step's manifest, its names and sizes held against the objects there."""
        folder, where = step_name(step), f"{self.where}/{step_name(step)}"
        try:
            manifest, committed = (self._objects.whole(f"{folder}/{name}") for name in (MANIFEST, COMMITTED))
        except AbsentError as err:
            raise CheckpointError(f"checkpoint {where}: not committed") from err
        listed = read_manifest(where, manifest, committed)
        present = {name: int(about["size"]) for name, about in self._objects.below(folder).items()}
        check_sizes(where, {k: size for k, size in present.items() if k not in (MANIFEST, COMMITTED)}, listed)
        return listed

    def _sweep(self) -> None:
        """Remove the steps that were never committed: one save at a time is in flight, and it has just ended."""
        present, committed = self._objects.below(), {step_name(step) for step in self.steps()}
        folders = {name: name.partition("/")[0] for name in present}
        self._objects.remove(name for name, top in folders.items() if step_of(top) is not None and top not in committed)
