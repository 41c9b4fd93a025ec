"""What an input holds: every file read by its header, grouped into studies; nothing is lost without a count."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from data_prep.bids import is_bids, left_out
from data_prep.catalogue import Catalogue, Studies
from data_prep.found import Found
from data_prep.headers import Header, HeaderReader
from data_prep.ledger import QuarantineError, Reason, Rule, Tally
from data_prep.nifti import read_nifti_header
from data_prep.pool import Workers
from data_prep.remote import is_url, open_heads
from data_prep.sources import find_files
from fm.config.errors import UserError
from fm.config.prepare import Source

_BATCH = 256
_TELL_NOTHING = {Reason.NOT_DICOM, Reason.UNREADABLE, Reason.BAD_ARCHIVE, Reason.ENCRYPTED}
"""Reasons that do not show that a file was DICOM."""


@dataclass(kw_only=True, slots=True)
class Inventory:
    """The images of an input by study, and what became of the other files."""

    studies: Studies
    """Headers by StudyInstanceUID, each sorted by path."""
    tally: Tally
    files: int
    """All files found, whatever they are."""


@dataclass(kw_only=True, slots=True)
class _Outcome:
    """One batch of files, read."""

    found: list[tuple[Found, Header | Rule | Reason]]


def take_inventory(
    source: str,
    kind: Source,
    scratch: Path,
    catalogue: Catalogue,
    pool: Workers,
    advance: Callable[[int], None] | None = None,
) -> Inventory:
    """Read the header of every file of an input that the catalogue does not know, or knows otherwise.

    Args:
        source: local folder, zip archive, or DICOMDIR; or the URL of a folder or archive.
        kind: what it holds; not `auto`.
        scratch: where archives are unpacked.
        catalogue: keeps what was read; it holds the result.
        pool: processes that read headers.
        advance: told how many files were read, or stood already.

    Raises:
        UserError: the input does not exist, or holds no DICOM at all.
    """
    told = advance or (lambda _: None)
    batches = _unread(find_files(source, scratch if kind is Source.dicom else None), catalogue, told)
    for outcome in pool.ordered(partial(read_batch, source, kind), batches, _batch_died):
        catalogue.put(outcome.found)
        told(len(outcome.found))
    catalogue.finish()
    inventory = Inventory(studies=catalogue.studies, tally=catalogue.tally(), files=catalogue.files)
    if not len(inventory.studies) and not _saw_dicom(inventory):
        raise UserError(
            f"input={source} holds no {'DICOM' if kind is Source.dicom else 'NIfTI'}: {inventory.files} files looked "
            "at, none of them an image; see prepare.source for other kinds of input"
        )
    return inventory


def kind_of(source: str, kind: Source) -> Source:
    """What an input holds, where it was left open.

    Raises:
        UserError: NIfTI files at a URL.
    """
    if is_url(source):
        if kind not in (Source.auto, Source.dicom):
            raise UserError(f"input={source}: NIfTI is read from local folders; copy it, or give DICOM")
        return Source.dicom
    if kind is Source.auto:
        return Source.bids if is_bids(source) else Source.dicom
    return kind


def _unread(files: Iterator[Found], catalogue: Catalogue, told: Callable[[int], None]) -> Iterator[list[Found]]:
    """Batches of the files that must be read."""
    unread: list[Found] = []
    while some := list(islice(files, _BATCH)):
        left = catalogue.open_items(some)
        told(len(some) - len(left))
        unread += left
        if len(unread) >= _BATCH:
            yield unread
            unread = []
    if unread:
        yield unread


def read_batch(root: str, kind: Source, files: Sequence[Found]) -> _Outcome:
    """Read the headers of some files of an input; runs in a worker.

    Raises:
        UserError: the store that holds them is out of reach.
    """
    reader = HeaderReader()
    there = [one for one in files if is_url(one.path)]  # members of an archive at a URL were unpacked here
    opened = dict(zip((one.path for one in there), open_heads(there), strict=True)) if there else {}
    outcome = _Outcome(found=[])
    for one in files:
        stream = opened.get(one.path)
        try:
            if isinstance(stream, QuarantineError):
                raise stream
            found = reader.read(one.path, stream) if kind is Source.dicom else _nifti(one.path, root, kind)
            outcome.found.append((one, found))
        except QuarantineError as err:
            outcome.found.append((one, err.reason))
    return outcome


def _nifti(path: str, root: str, kind: Source) -> Header | Rule:
    return left_out(os.path.relpath(path, root)) or read_nifti_header(path, root, kind)


def _batch_died(files: Sequence[Found]) -> _Outcome:
    return _Outcome(found=[(found, Reason.WORKER_DIED) for found in files])


def _saw_dicom(inventory: Inventory) -> bool:
    """Whether anything was DICOM, be it excluded or broken."""
    foreign = {Rule.NON_DICOM.value, Rule.NOT_A_FILE.value, Rule.ARCHIVE.value}
    broken = any(entry.reason not in _TELL_NOTHING for entry in inventory.tally.entries)
    return broken or any(rule not in foreign for rule in inventory.tally.excluded)
