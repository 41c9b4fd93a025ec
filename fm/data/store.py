"""Bytes of a dataset's folder: a memory map on disk; elsewhere ranged reads, several at a time, retried and cached.

Datasets live at a local path or at a URL of an allowed scheme; nothing a URL says is ever run or chained.
"""

from __future__ import annotations

import mmap
import os
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import fsspec
from isal import isal_zlib

from fm.config.data import DataConfig
from fm.config.errors import UserError
from fm.data.cache import DiskCache

SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "az", "memory")
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_FINAL = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, ImportError, TypeError, ValueError)
"""Asking again changes nothing: 403, 404, a missing driver, a wrong address."""
_LONGEST_WAIT_S = 30.0
_GAP_BYTES = 2**16
"""Ranges this close are read as one: tar headers lie between the members of a study."""
_LARGEST_RANGE = 2**26
_jitter = random.SystemRandom()

T = TypeVar("T")
Payload = TypeVar("Payload", bytes, memoryview)


class DatasetError(UserError):
    """A dataset that is missing, incomplete, damaged, or at a place that may not be read."""


@dataclass(slots=True)
class Member:
    """Where one member's bytes lie in its shard."""

    offset: int
    length: int
    crc32: int


@dataclass(slots=True)
class Request:
    """One ranged read."""

    shard: str
    where: Member
    label: str
    """What is read, for error messages: study and member."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """How object storage is read; local files need none of it."""

    connections: int = 16
    attempts: int = 5
    wait_s: float = 0.5
    """Longest wait before the second attempt; it doubles with each further one, and a random part of it is waited."""
    cache_dir: str = ""
    cache_bytes: int = 0


def access_of(data: DataConfig) -> Access:
    """The access that a configuration asks for."""
    return Access(
        connections=data.connections,
        attempts=data.read_attempts,
        wait_s=data.read_wait_s,
        cache_dir=data.cache_dir,
        cache_bytes=round(data.cache_gb * 1e9),
    )


def open_store(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """File system and path of a dataset's folder.

    Raises:
        DatasetError: the URL's scheme is not on the allow-list (``pipe:`` and chained URLs among them), or its driver
            is not installed.
    """
    scheme, path = _parse(url)
    try:
        return fsspec.filesystem(scheme), path
    except ImportError:
        raise DatasetError(f"{scheme}: URLs need a driver: pip install 'fm[cloud]'") from None


def _parse(url: str) -> tuple[str, str]:
    """Scheme and path."""
    found = _SCHEME.match(url)
    if found is None:
        if url.startswith("pipe:"):
            raise DatasetError("pipe: URLs run commands and are refused; use a folder or one of " + ", ".join(SCHEMES))
        return "file", os.path.abspath(url)
    scheme = found.group(1).lower()
    if scheme not in SCHEMES or "::" in url:
        raise DatasetError(f"{scheme}: URLs are not read; use a folder or one of {', '.join(SCHEMES)}")
    path = url[found.end() :].rstrip("/")
    return scheme, os.path.abspath("/" + path.lstrip("/")) if scheme == "file" else path


class Store:
    """Reads the files of one dataset; picklable, and safe to use after a fork."""

    failure: ClassVar[type[UserError]] = DatasetError
    missing: ClassVar[type[UserError]] = DatasetError
    """Raised for what is not there."""
    remedy: ClassVar[str] = "copy the dataset again or prepare it again"
    """What to do about it."""

    def __init__(self, url: str, access: Access, hashes: Mapping[str, str] | None = None) -> None:
        """Reading starts with the first call.

        Args:
            url: the dataset's folder.
            access: concurrency, retries, cache.
            hashes: SHA-256 of each shard, which names its bytes in the cache; shards without one are not cached.
        """
        self.url = url
        self.access = access
        self.hashes = dict(hashes or {})
        self.scheme, self.root = _parse(url)
        self._pid = 0
        self._maps: dict[str, mmap.mmap] = {}
        self._fs: Any = None
        self._pool: ThreadPoolExecutor | None = None
        self._cache: DiskCache | None = None

    @property
    def local(self) -> bool:
        """Whether the files lie on a disk of this machine."""
        return self.scheme == "file"

    def whole(self, name: str) -> bytes:
        """All bytes of a file.

        Raises:
            DatasetError: not there, not allowed, or not readable after all attempts.
        """
        return bytes(self._attempt(name, lambda: self.files.cat_file(f"{self.root}/{name}")))

    def sizes(self) -> dict[str, int]:
        """Bytes of every file of the folder.

        Raises:
            DatasetError: as :meth:`whole`.
        """
        if self.local:
            with os.scandir(self.root) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        listed = self._attempt("", lambda: self.files.ls(self.root, detail=True, refresh=True))
        return {entry["name"].rsplit("/", 1)[-1]: int(entry["size"] or 0) for entry in listed}

    def read(self, request: Request) -> bytes | memoryview:
        """One ranged read, checked by CRC-32; on a disk of this machine a view of the file, not a copy.

        Raises:
            DatasetError: bytes that are missing, damaged, or not readable after all attempts; names shard and study.
        """
        (found,) = self.read_many([request])
        if isinstance(found, DatasetError):
            raise found
        return found

    def read_many(self, requests: Sequence[Request]) -> list[bytes | memoryview | DatasetError]:
        """Many ranged reads at once, neighbours as one; what fails is returned in its place, and hurts no other."""
        self._renew()
        if self.local:
            return [self._mapped(request) for request in requests]
        found: dict[int, bytes | memoryview | DatasetError] = {}
        for row, request in enumerate(requests):
            if (kept := self._kept(request)) is not None:
                found[row] = kept
        runs = _runs(requests, [row for row in range(len(requests)) if row not in found])
        if len(runs) == 1:
            found |= self._run(requests, runs[0])
        elif runs:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.access.connections, thread_name_prefix="store")
            files = self.files  # made here: the threads share it
            assert files is not None
            for part in self._pool.map(lambda run: self._run(requests, run), runs):
                found |= part
        return [found[row] for row in range(len(requests))]

    @property
    def files(self) -> Any:
        """This process's file system. Its own retries are off: ours have the last word on how often."""
        self._renew()
        if self._fs is None:
            options: dict[str, Any] = {}
            if self.scheme == "s3":
                settings = {
                    "retries": {"total_max_attempts": 1, "mode": "standard"},
                    "max_pool_connections": self.access.connections,
                    # some servers answer a range with the checksum of the whole object; members have their own CRC-32
                    "response_checksum_validation": "when_required",
                }
                options = {"skip_instance_cache": True, "config_kwargs": settings}
            try:
                self._fs = fsspec.filesystem(self.scheme, **options)
            except ImportError:
                raise DatasetError(f"{self.scheme}: URLs need a driver: pip install 'fm[cloud]'") from None
            if self.scheme == "s3":
                self._fs.retries = 1
        return self._fs

    def _renew(self) -> None:
        """Forget what a parent process opened."""
        if self._pid != os.getpid():
            self._maps, self._fs, self._pool, self._pid = {}, None, None, os.getpid()
            self._cache = DiskCache(self.access.cache_dir, self.access.cache_bytes) if self.access.cache_dir else None

    def _run(self, requests: Sequence[Request], rows: Sequence[int]) -> dict[int, bytes | memoryview | DatasetError]:
        """One ranged read for requests that lie next to each other in a shard."""
        shard, first = requests[rows[0]].shard, requests[rows[0]].where.offset
        length = max(requests[row].where.offset + requests[row].where.length for row in rows) - first
        try:
            payload = self._ranged(shard, first, length, requests[rows[0]].label)
        except DatasetError as err:
            return dict.fromkeys(rows, err)
        found: dict[int, bytes | memoryview | DatasetError] = {}
        for row in rows:
            start = requests[row].where.offset - first
            part = self._checked(requests[row], payload[start : start + requests[row].where.length])
            found[row] = part
            if self._cache is not None and isinstance(part, bytes) and shard in self.hashes:
                self._cache.put(self._place(requests[row]), part)
        return found

    def _ranged(self, shard: str, first: int, length: int, label: str) -> bytes:
        def once() -> bytes:
            payload = bytes(self.files.cat_file(f"{self.root}/{shard}", start=first, end=first + length))
            if len(payload) != length:
                raise OSError(f"{len(payload)} of {length} bytes came")
            return payload

        return self._attempt(shard, once, f" (wanted by {label})")

    def _attempt(self, name: str, action: Callable[[], T], wanted: str = "", deed: str = "read") -> T:
        """The action's result, asked for several times with growing random waits in between."""
        where = f"{self.url}/{name}".rstrip("/")
        attempts = 1 if self.local or self.scheme == "memory" else self.access.attempts
        for attempt in range(attempts):
            try:
                return action()
            except (FileNotFoundError, NotADirectoryError) as err:
                raise self.missing(f"{where}: missing{wanted}; {self.remedy}") from err
            except PermissionError as err:
                raise self.failure(f"{where}: access denied{wanted} ({_short(err)}); check the credentials") from err
            except Exception as err:  # every store's driver has its own errors for a moment's weakness
                if isinstance(err, _FINAL) or "Credential" in type(err).__name__:
                    raise self.failure(f"{where}: cannot be {deed}{wanted}: {_short(err)}") from err
                if attempt + 1 == attempts:
                    raise self.failure(
                        f"{where}: not {deed} in {attempts} attempts{wanted}, the last: {_short(err)}; "
                        "run it again once the store answers, or raise data.read_attempts"
                    ) from err
            time.sleep(_jitter.uniform(0, min(_LONGEST_WAIT_S, self.access.wait_s * 2**attempt)))
        raise AssertionError("at least one attempt is made")

    def _mapped(self, request: Request) -> memoryview | DatasetError:
        shard, where = request.shard, request.where
        if shard not in self._maps:
            try:
                with Path(self.root, shard).open("rb") as file:
                    self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as err:
                return DatasetError(
                    f"{self.url}/{shard}: missing or not readable (wanted by {request.label}): {_short(err)}"
                )
        return self._checked(request, memoryview(self._maps[shard])[where.offset : where.offset + where.length])

    def _checked(self, request: Request, payload: Payload) -> Payload | DatasetError:
        if len(payload) != request.where.length or isal_zlib.crc32(payload) != request.where.crc32:
            return DatasetError(f"{self.url}/{request.shard}: {request.label} is damaged; run fm verify")
        return payload

    def _kept(self, request: Request) -> bytes | None:
        """A member from the cache; a copy that was damaged there is thrown away."""
        if self._cache is None or request.shard not in self.hashes:
            return None
        payload = self._cache.get(self._place(request))
        if payload is None or not isinstance(self._checked(request, payload), DatasetError):
            return payload
        self._cache.drop(self._place(request))
        return None

    def _place(self, request: Request) -> str:
        return f"{self.hashes[request.shard][:16]}/{request.where.offset}-{request.where.length}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pid": 0, "_maps": {}, "_fs": None, "_pool": None, "_cache": None}


def _runs(requests: Sequence[Request], rows: Sequence[int]) -> list[list[int]]:
    """Rows in runs that lie close together in one shard."""
    runs: list[list[int]] = []
    end, start = 0, 0
    for row in sorted(rows, key=lambda r: (requests[r].shard, requests[r].where.offset)):
        shard, where = requests[row].shard, requests[row].where
        near = bool(runs) and requests[runs[-1][-1]].shard == shard and where.offset - end <= _GAP_BYTES
        if near and where.offset + where.length - start <= _LARGEST_RANGE:
            runs[-1].append(row)
            end = max(end, where.offset + where.length)
        else:
            runs.append([row])
            start, end = where.offset, where.offset + where.length
    return runs


def _short(err: BaseException) -> str:
    return f"{type(err).__name__}: {' '.join(str(err).split())[:200]}"
