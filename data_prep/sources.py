"""Where the files of an input lie: folders here or at a URL, zip archives (also in folders), what a DICOMDIR lists.

Members of an archive are written under numbers of our own into a private folder, never under their own names.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import pydicom

from data_prep.found import SUFFIXES, Found
from data_prep.ledger import Reason, Rule
from data_prep.remote import is_url, open_url, walk_url
from fm.config.errors import UserError

MAX_MEMBER_BYTES = 2**31
_SUSPICIOUS_BYTES = 2**26
_SUSPICIOUS_RATIO = 200
"""A member larger than the first that grows more than the second is a bomb; pictures of nothing stay smaller."""


@contextlib.contextmanager
def private_folder(path: Path) -> Iterator[Path]:
    """An empty folder for unpacked members, readable by its owner alone; made when first used, removed at the end."""
    shutil.rmtree(path, ignore_errors=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def find_files(source: str, scratch: Path | None) -> Iterator[Found]:
    """Every file of an input, in name order.

    Args:
        source: folder, zip archive, or DICOMDIR; or the URL of a folder or zip archive.
        scratch: where members of archives are written; None: archives are files like others.

    Raises:
        UserError: the input is none of these, cannot be reached, or the disk has no room for its archives.
    """
    if is_url(source):
        for found in walk_url(source):
            if scratch is not None and found.name.lower().endswith(".zip"):
                with open_url(found.path) as stream:
                    yield from _unpacked(stream, found, scratch)
            else:
                yield found
    elif os.path.isdir(source):
        for found in walk(source):
            if found.problem is None and scratch is not None and found.path.lower().endswith(".zip"):
                yield from _unpacked(found.path, found, scratch)
            else:
                yield found
    elif scratch is not None and zipfile.is_zipfile(source):
        yield from _unpacked(source, _found(source, os.path.basename(source)), scratch)
    elif os.path.isfile(source) and os.path.basename(source).upper() == "DICOMDIR":
        yield from _listed(source)
    else:
        raise UserError(
            f"input={source} is not a folder, a zip archive or a DICOMDIR; give the folder that holds the DICOM files"
        )


def walk(folder: str) -> Iterator[Found]:
    """Every file below `folder` in name order, with the reason where it cannot be a readable file.

    Linked folders are entered once each, so loops end. One folder's names are held at a time.
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
            yield Found(path=here, name=os.path.relpath(here, folder), problem=Reason.UNREADABLE)
            continue
        folders: list[str] = []
        for entry in entries:
            try:
                is_folder = stat.S_ISDIR(entry.stat().st_mode)
            except OSError:
                is_folder = False
            if is_folder:
                folders.append(entry.path)
            else:
                yield _found(entry.path, os.path.relpath(entry.path, folder))
        pending.extend(reversed(folders))


def _found(path: str, name: str) -> Found:
    """A file of this machine, as it is now."""
    try:
        status = os.stat(path)
    except OSError:
        return Found(path=path, name=name, problem=Reason.UNREADABLE)
    problem = None if stat.S_ISREG(status.st_mode) else Rule.NOT_A_FILE
    return Found(path=path, name=name, problem=problem, size=status.st_size, stamp=str(status.st_mtime_ns))


def _unpacked(archive: str | IO[bytes], whole: Found, scratch: Path) -> Iterator[Found]:
    """The archive itself, and each of its members."""
    try:
        opened = zipfile.ZipFile(archive)
    except (OSError, zipfile.BadZipFile):
        yield replace(whole, problem=Reason.BAD_ARCHIVE)
        return
    with opened:
        members = [info for info in opened.infolist() if not info.is_dir()]
        folder = scratch / f"{len(list(scratch.iterdir())) if scratch.exists() else 0:06d}"
        folder.mkdir(mode=0o700, parents=True)
        os.chmod(scratch, 0o700)
        if sum(info.file_size for info in members if _refused(info) is None) > shutil.disk_usage(folder).free:
            raise UserError(f"no room to unpack an archive of the input beside the key ({scratch.parent}): free some")
        yield replace(whole, problem=Rule.ARCHIVE)
        for number, info in enumerate(members):
            suffix = Path(info.filename).suffix.lower()
            target = folder / f"{number:06d}{suffix if suffix in SUFFIXES else ''}"
            yield Found(
                path=str(target),
                name=f"{whole.name}!/{info.filename}",
                problem=_refused(info) or _extract(opened, info, target),
                size=info.file_size,
                stamp=f"{info.CRC:08x}",
            )


def _refused(info: zipfile.ZipInfo) -> Rule | Reason | None:
    """Why a member is not unpacked."""
    if stat.S_ISLNK(info.external_attr >> 16):
        return Rule.NOT_A_FILE
    if info.flag_bits & 1:
        return Reason.ENCRYPTED
    swollen = info.file_size > _SUSPICIOUS_BYTES and info.file_size > _SUSPICIOUS_RATIO * info.compress_size
    return Reason.TOO_LARGE if swollen or info.file_size > MAX_MEMBER_BYTES else None


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> Reason | None:
    """Write one member; zipfile reads no more than the size it declares, and checks its CRC."""
    try:
        with archive.open(info) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 2**20)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        target.unlink(missing_ok=True)
        return Reason.BAD_ARCHIVE
    return None


def _listed(dicomdir: str) -> Iterator[Found]:
    """The DICOMDIR itself, and each file that its records name (PS3.3 F.3, PS3.10 8)."""
    try:
        records = list(pydicom.dcmread(dicomdir).DirectoryRecordSequence)
        named = [record.ReferencedFileID for record in records if "ReferencedFileID" in record]
    except Exception:  # a hostile file fails in every way there is
        raise UserError(f"input={dicomdir} is no readable DICOMDIR; give the folder that holds the files") from None
    root = os.path.dirname(os.path.abspath(dicomdir))
    yield Found(path=dicomdir, name=os.path.basename(dicomdir), problem=Rule.DICOMDIR)
    seen: set[str] = set()
    for value in named:
        parts = [value] if isinstance(value, str) else [str(part) for part in value]
        name = "/".join(parts)
        if name in seen:
            continue
        seen.add(name)
        outside = any(part in ("", ".", "..") or "/" in part or os.sep in part for part in parts)
        path = None if outside else _on_disk(root, parts)
        yield _found(path or "", name)


def _on_disk(root: str, parts: list[str]) -> str | None:
    """The file that a File ID names: discs are often copied with their names in small letters, or a version added."""
    here = root
    for part in parts:
        exact = os.path.join(here, part)
        if not os.path.lexists(exact):
            try:
                names = sorted(os.listdir(here))
            except OSError:
                return None
            alike = [name for name in names if name.lower().removesuffix(";1").rstrip(".") == part.lower()]
            if not alike:
                return None
            exact = os.path.join(here, alike[0])
        here = exact
    inside = os.path.realpath(here).startswith(os.path.realpath(root) + os.sep)
    return here if inside and os.path.isfile(here) else None
