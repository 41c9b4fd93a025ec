"""A folder of byte strings up to a size, the least recently used deleted first; several processes may share it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

OWN = "fm-cache"
"""Folder below the one that is given, so that nothing else is ever counted or deleted."""


class DiskCache:
    """Files in a folder of their own, written whole or not at all.

    Each process counts what it adds and looks at the whole folder again after every 64th part of the limit, so one
    process keeps the limit and *n* of them exceed it by *n* 64ths at most.
    """

    def __init__(self, folder: str, limit_bytes: int) -> None:
        self.folder = Path(folder) / OWN
        self.limit = limit_bytes
        self._size: int | None = None
        self._added = 0

    def get(self, name: str) -> bytes | None:
        """The bytes of a name, now the most recently used; None where there are none."""
        path = self.folder / name
        try:
            payload = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return payload

    def put(self, name: str, payload: bytes) -> None:
        """Keep bytes, deleting others where there is no room; on a full or read-only disk nothing is kept."""
        if len(payload) > self.limit:
            return
        if self._size is None or self._size + len(payload) > self.limit or self._added > self.limit // 64:
            self._evict(len(payload))
        path = self.folder / name
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(payload)
                os.replace(temporary, path)
            except OSError:
                os.unlink(temporary)
                raise
            self._size = (self._size or 0) + len(payload)
            self._added += len(payload)

    def drop(self, name: str) -> None:
        """Delete one entry."""
        with contextlib.suppress(OSError):
            (self.folder / name).unlink()

    def _evict(self, room: int) -> None:
        """Count the folder, and delete the least recently used until `room` bytes and a tenth of the limit are free."""
        entries: list[tuple[float, int, str]] = []
        for folder, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(OSError):
                    status = os.stat(os.path.join(folder, name))
                    entries.append((status.st_mtime, status.st_size, os.path.join(folder, name)))
        size = sum(entry[1] for entry in entries)
        if size + room > self.limit:
            for _, length, path in sorted(entries):
                if size + room <= self.limit - self.limit // 10:
                    break
                with contextlib.suppress(OSError):
                    os.unlink(path)
                    size -= length
        self._size, self._added = size, 0
