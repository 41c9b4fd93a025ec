"""Inputs at a URL: listed folder by folder, headers read by ranges, whole files fetched only to be converted.

A moment's weakness of the store is asked again; what stays out of reach stops the run, which goes on when it is
started again: it would be a loss to take it for a broken file.
"""

from __future__ import annotations

import io
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar, cast

from data_prep.found import SUFFIXES, Found
from data_prep.headers import Header
from data_prep.ledger import NO_SPACE, QuarantineError, Reason
from fm.config.errors import UserError
from fm.data.index import open_store

HEAD_BYTES = 2**16
"""Read of each file at first: headers of most MR images fit."""
_ATTEMPTS = 5
_LONGEST_WAIT_S = 10.0
_TAGS = ("ETag", "etag", "LastModified", "updated", "last_modified", "mtime", "created")
_CONNECTIONS = 8
_jitter = random.SystemRandom()

T = TypeVar("T")


def is_url(path: str) -> bool:
    """Whether a path is the URL of something that this machine's disks do not hold."""
    return "://" in path


def walk_url(url: str) -> Iterator[Found]:
    """Every file below a URL, folder by folder in name order; or the file that it names.

    Raises:
        UserError: its scheme is not allowed, its driver is missing, or nothing is there.
    """
    fs, root = open_store(url)
    scheme = url.split("://", 1)[0]
    root = root.strip("/")
    pending = [root]
    while pending:
        here = pending.pop()
        entries = _attempt(partial(fs.ls, here, detail=True), url)
        fs.invalidate_cache()  # it keeps what it lists, and an archive may be large
        folders: list[str] = []
        for entry in sorted(entries, key=lambda entry: str(entry["name"])):
            name = str(entry["name"]).strip("/")
            if entry["type"] == "directory":
                folders.append(name)
            # some stores list a folder in itself, as an empty file
            elif name != here or entry["size"]:
                tag = next((entry[key] for key in _TAGS if key in entry), "")
                yield Found(
                    path=f"{scheme}://{name}",
                    name=name.removeprefix(root).lstrip("/") or os.path.basename(name),
                    size=int(entry["size"] or 0),
                    stamp=str(tag).strip('"'),
                )
        pending.extend(name for name in reversed(folders) if name != here)


def open_url(url: str) -> IO[bytes]:
    """A file that reads by ranges."""
    fs, path = open_store(url)
    return cast(IO[bytes], _attempt(lambda: fs.open(path, "rb", block_size=2**22), url))


def open_heads(files: Sequence[Found]) -> list[BinaryIO | QuarantineError]:
    """The files, their first :data:`HEAD_BYTES` read at once; what is gone or refused is an error in its place."""
    fs, _ = open_store(files[0].path)
    paths = [open_store(found.path)[1] for found in files]
    wanted = [number for number, found in enumerate(files) if found.size]
    ends = [min(HEAD_BYTES, files[number].size) for number in wanted]

    def read() -> list[Any]:
        return list(fs.cat_ranges([paths[n] for n in wanted], [0] * len(wanted), ends, on_error="return"))

    heads: dict[int, Any] = dict(zip(wanted, read() if wanted else [], strict=True))
    opened: list[BinaryIO | QuarantineError] = []
    for number, found in enumerate(files):
        head = heads.get(number, b"")
        if isinstance(head, Exception):
            try:
                head = _ranged(fs, paths[number], 0, min(HEAD_BYTES, found.size), found.path)
            except QuarantineError as err:
                opened.append(err)
                continue
        opened.append(cast(BinaryIO, io.BufferedReader(_Remote(fs, paths[number], found, bytes(head)), 2**13)))
    return opened


class _Remote(io.RawIOBase):
    """A file at a URL, by ranged reads; its start is known."""

    name = ""
    """pydicom asks for it."""

    def __init__(self, fs: Any, path: str, found: Found, head: bytes) -> None:
        self._fs, self._path, self._found = fs, path, found
        self._start, self._block = 0, head
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._found.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._found.size:
            return 0
        if not self._start <= self._at < self._start + len(self._block):
            end = min(self._found.size, self._at + max(HEAD_BYTES, len(buffer)))
            self._block = _ranged(self._fs, self._path, self._at, end, self._found.path)
            self._start = self._at
        part = self._block[self._at - self._start :][: len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


def fetched(headers: Sequence[Header], folder: Path) -> list[Header]:
    """The headers with their files in `folder`, under numbers; those of local files as they are.

    Raises:
        OSError: no space left.
        UserError: the store is out of reach.
    """

    def fetch(number: int, header: Header) -> Header:
        if not is_url(header.path):
            return header
        suffix = os.path.splitext(header.path)[1].lower()
        target = folder / f"{number:06d}{suffix if suffix in SUFFIXES else ''}"
        fs, path = open_store(header.path)
        _attempt(lambda: fs.get_file(path, str(target)), header.path)
        return replace(header, path=str(target))

    if not any(is_url(header.path) for header in headers):
        return list(headers)
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        return list(pool.map(fetch, range(len(headers)), headers))


def _ranged(fs: Any, path: str, start: int, end: int, url: str) -> bytes:
    try:
        return bytes(_attempt(lambda: fs.cat_file(path, start=start, end=end), url))
    except UserError as err:
        if isinstance(err.__cause__, FileNotFoundError | PermissionError):
            raise QuarantineError(Reason.UNREADABLE) from None
        raise


def _attempt(action: Callable[[], T], url: str) -> T:
    """The action's result, asked for several times with growing random waits in between.

    Raises:
        UserError: missing, refused, or no answer.
        OSError: the disk here is full.
    """
    place = url.split("://", 1)[0] + "://"  # a path may name a patient
    for attempt in range(_ATTEMPTS):
        try:
            return action()
        except (FileNotFoundError, PermissionError) as err:
            raise UserError(
                f"input: a file or folder at {place} is missing or refused; check address and rights"
            ) from err
        except Exception as err:  # every store's driver has its own errors for a moment's weakness
            if isinstance(err, OSError) and err.errno in NO_SPACE:
                raise
            if attempt + 1 == _ATTEMPTS or "Credential" in type(err).__name__:
                raise UserError(
                    f"input: {place} did not answer in {attempt + 1} attempts ({type(err).__name__}); run the same "
                    "command again once it does, it goes on"
                ) from err
        time.sleep(_jitter.uniform(0, min(_LONGEST_WAIT_S, 0.5 * 2**attempt)))
    raise AssertionError("at least one attempt is made")
