"""What lies in a folder: every file read by its header, grouped into studies; nothing is lost without a count."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from data_prep.headers import Header, HeaderReader
from data_prep.keys import Keyring
from data_prep.ledger import Entry, QuarantineError, Reason, Rule, Tally
from data_prep.pool import Workers
from fm.config.errors import UserError

_BATCH = 256


@dataclass(kw_only=True, slots=True)
class Inventory:
    """The images of a folder by study, and what became of the other files."""

    studies: dict[str, list[Header]] = field(default_factory=dict)
    """Headers by StudyInstanceUID, each sorted by path."""
    tally: Tally = field(default_factory=Tally)
    files: int = 0
    """All files found, whatever they are."""
    sources: list[tuple[str, str, str]] = field(default_factory=list)
    """(keyed id, 'file', path) of quarantined files, for the table beside the key."""


@dataclass(kw_only=True, slots=True)
class _Outcome:
    """One batch of files, read."""

    headers: list[Header]
    excluded: list[Rule]
    failed: list[tuple[str, Reason]]


def walk(folder: str) -> Iterator[tuple[str, Rule | Reason | None]]:
    """Every file below `folder` in name order, with the reason where it cannot be a readable file.

    Linked folders are entered once each, so loops end.
    """
    seen: set[tuple[int, int]] = set()
    pending = [folder]
    while pending:
        here = pending.pop()
        try:
            status = os.stat(here)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError:
            yield here, Reason.UNREADABLE
            continue
        folders: list[str] = []
        for entry in entries:
            try:
                mode = entry.stat().st_mode
            except OSError:
                yield entry.path, Reason.UNREADABLE
                continue
            if stat.S_ISDIR(mode):
                folders.append(entry.path)
            else:
                yield entry.path, None if stat.S_ISREG(mode) else Rule.NOT_A_FILE
        pending.extend(reversed(folders))


def take_inventory(
    folder: str, keyring: Keyring, pool: Workers, advance: Callable[[int], None] | None = None
) -> Inventory:
    """Read the header of every file below a folder.

    Args:
        folder: local folder.
        keyring: gives quarantined files their ids.
        pool: processes that read headers.
        advance: told how many files were read.

    Raises:
        UserError: the folder does not exist, or holds no DICOM at all.
    """
    if not os.path.isdir(folder):
        raise UserError(f"input={folder} is not a folder; give the folder that holds the DICOM files")
    inventory = Inventory()
    paths: list[str] = []
    for path, problem in walk(folder):
        inventory.files += 1
        if problem is None:
            paths.append(path)
        elif isinstance(problem, Rule):
            inventory.tally.excluded[problem.value] += 1
        else:
            _quarantine(inventory, keyring, folder, path, problem)
    batches = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
    for batch, outcome in zip(batches, pool.ordered(read_batch, batches, _batch_died), strict=True):
        for header in outcome.headers:
            inventory.studies.setdefault(header.study_uid, []).append(header)
        inventory.tally.excluded.update(rule.value for rule in outcome.excluded)
        for path, reason in outcome.failed:
            _quarantine(inventory, keyring, folder, path, reason)
        if advance is not None:
            advance(len(batch))
    if not inventory.studies and not _saw_dicom(inventory):
        raise UserError(f"input={folder} holds no DICOM: {inventory.files} files looked at, none of them an image")
    for headers in inventory.studies.values():
        headers.sort(key=lambda header: header.path)
    return inventory


def read_batch(paths: Iterable[str]) -> _Outcome:
    """Read the headers of some files; runs in a worker."""
    outcome = _Outcome(headers=[], excluded=[], failed=[])
    reader = HeaderReader()
    for path in paths:
        try:
            found = reader.read(path)
        except QuarantineError as err:
            outcome.failed.append((path, err.reason))
            continue
        if isinstance(found, Rule):
            outcome.excluded.append(found)
        else:
            outcome.headers.append(found)
    return outcome


def _batch_died(paths: Iterable[str]) -> _Outcome:
    return _Outcome(headers=[], excluded=[], failed=[(path, Reason.WORKER_DIED) for path in paths])


def _quarantine(inventory: Inventory, keyring: Keyring, folder: str, path: str, reason: Reason) -> None:
    item = keyring.item("file", os.path.relpath(path, folder))
    inventory.tally.entries.append(Entry(item=item, kind="file", reason=reason, files=1))
    inventory.sources.append((item, "file", path))


def _saw_dicom(inventory: Inventory) -> bool:
    """Whether anything was DICOM, be it excluded or broken."""
    foreign = {Rule.NON_DICOM.value, Rule.NOT_A_FILE.value}
    broken = any(entry.reason not in (Reason.NOT_DICOM, Reason.UNREADABLE) for entry in inventory.tally.entries)
    return broken or any(rule not in foreign for rule in inventory.tally.excluded)
