"""What an input holds: every file read by its header, grouped into studies; nothing is lost without a count."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from data_prep.bids import is_bids, left_out
from data_prep.headers import Header, HeaderReader
from data_prep.keys import Keyring
from data_prep.ledger import Entry, QuarantineError, Reason, Rule, Tally
from data_prep.nifti import read_nifti_header
from data_prep.pool import Workers
from data_prep.sources import find_files
from fm.config.errors import UserError
from fm.config.prepare import Source

_BATCH = 256
_TELL_NOTHING = {Reason.NOT_DICOM, Reason.UNREADABLE, Reason.BAD_ARCHIVE, Reason.ENCRYPTED}
"""Reasons that do not show that a file was DICOM."""


@dataclass(kw_only=True, slots=True)
class Inventory:
    """The images of an input by study, and what became of the other files."""

    studies: dict[str, list[Header]] = field(default_factory=dict)
    """Headers by StudyInstanceUID, each sorted by path."""
    tally: Tally = field(default_factory=Tally)
    files: int = 0
    """All files found, whatever they are."""
    sources: list[tuple[str, str, str]] = field(default_factory=list)
    """(keyed id, 'file', path) of quarantined files, for the table beside the key."""
    names: dict[str, str] = field(default_factory=dict)
    """Where each file to be read lies in the input, by the path where it is read."""


@dataclass(kw_only=True, slots=True)
class _Outcome:
    """One batch of files, read."""

    headers: list[Header]
    excluded: list[Rule]
    failed: list[tuple[str, Reason]]


def take_inventory(
    source: str,
    kind: Source,
    scratch: Path,
    keyring: Keyring,
    pool: Workers,
    advance: Callable[[int], None] | None = None,
) -> Inventory:
    """Read the header of every file of an input.

    Args:
        source: local folder, zip archive, or DICOMDIR.
        kind: what it holds.
        scratch: where archives are unpacked.
        keyring: gives quarantined files their ids.
        pool: processes that read headers.
        advance: told how many files were read.

    Raises:
        UserError: the input does not exist, or holds no DICOM at all.
    """
    inventory = Inventory()
    if kind is Source.auto:
        kind = Source.bids if is_bids(source) else Source.dicom
    for found in find_files(source, scratch if kind is Source.dicom else None):
        inventory.files += 1
        if found.problem is None:
            inventory.names[found.path] = found.name
        elif isinstance(found.problem, Rule):
            inventory.tally.excluded[found.problem.value] += 1
        else:
            _quarantine(inventory, keyring, found.name, source, found.problem)
    paths = list(inventory.names)
    batches = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
    outcomes = pool.ordered(partial(read_batch, source, kind), batches, _batch_died)
    for batch, outcome in zip(batches, outcomes, strict=True):
        for header in outcome.headers:
            inventory.studies.setdefault(header.study_uid, []).append(header)
        inventory.tally.excluded.update(rule.value for rule in outcome.excluded)
        for path, reason in outcome.failed:
            _quarantine(inventory, keyring, inventory.names[path], source, reason)
        if advance is not None:
            advance(len(batch))
    if not inventory.studies and not _saw_dicom(inventory):
        raise UserError(
            f"input={source} holds no {'DICOM' if kind is Source.dicom else 'NIfTI'}: {inventory.files} files looked "
            "at, none of them an image; see prepare.source for other kinds of input"
        )
    for headers in inventory.studies.values():
        headers.sort(key=lambda header: header.path)
    return inventory


def read_batch(root: str, kind: Source, paths: Iterable[str]) -> _Outcome:
    """Read the headers of some files of an input; runs in a worker."""
    outcome = _Outcome(headers=[], excluded=[], failed=[])
    reader = HeaderReader()
    for path in paths:
        try:
            found = reader.read(path) if kind is Source.dicom else _nifti(path, root, kind)
        except QuarantineError as err:
            outcome.failed.append((path, err.reason))
            continue
        if isinstance(found, Rule):
            outcome.excluded.append(found)
        else:
            outcome.headers.append(found)
    return outcome


def _nifti(path: str, root: str, kind: Source) -> Header | Rule:
    return left_out(os.path.relpath(path, root)) or read_nifti_header(path, root, kind)


def _batch_died(paths: Iterable[str]) -> _Outcome:
    return _Outcome(headers=[], excluded=[], failed=[(path, Reason.WORKER_DIED) for path in paths])


def _quarantine(inventory: Inventory, keyring: Keyring, name: str, source: str, reason: Reason) -> None:
    item = keyring.item("file", name)
    inventory.tally.entries.append(Entry(item=item, kind="file", reason=reason, files=1))
    inventory.sources.append((item, "file", str(Path(source, name) if Path(source).is_dir() else name)))


def _saw_dicom(inventory: Inventory) -> bool:
    """Whether anything was DICOM, be it excluded or broken."""
    foreign = {Rule.NON_DICOM.value, Rule.NOT_A_FILE.value, Rule.ARCHIVE.value}
    broken = any(entry.reason not in _TELL_NOTHING for entry in inventory.tally.entries)
    return broken or any(rule not in foreign for rule in inventory.tally.excluded)
