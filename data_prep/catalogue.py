"""What is known of every file of an input, on disk beside the key: a header is read once, whatever stops the run.

Memory holds one study's headers at a time. The table names patients and paths: it is as restricted as the key.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from data_prep.found import Found
from data_prep.headers import Header, Identity, Scan
from data_prep.keys import Keyring
from data_prep.ledger import NO_SPACE, Entry, Reason, Rule, Tally
from fm.config.errors import UserError

_LAYOUT = "1"
_HEADER = tuple(f.name for f in fields(Header) if f.name not in ("path", "scan", "identity"))
_SCAN = tuple(f.name for f in fields(Scan))
_IDENTITY = tuple(f.name for f in fields(Identity))
_ASK_AGAIN = (Reason.UNREADABLE, Reason.WORKER_DIED, Reason.OUT_OF_MEMORY)
"""Reasons that may be gone without a change of the file."""
_KEPT_IN_MEMORY = 256

Outcome = Header | Rule | Reason


class Catalogue:
    """The table; one run at a time.

    Args:
        path: the file.
        kind: what else decides how a file is read; a table of another kind, or of another version, is made anew.
            None takes any kind.
        keyring: gives studies their keys.

    Raises:
        UserError: another run has it open, or it cannot be written.
    """

    def __init__(self, path: Path, kind: str | None, keyring: Keyring) -> None:
        self.path = path
        self.keyring = keyring
        self._shared: OrderedDict[int, Any] = OrderedDict()
        version = [_LAYOUT, list(_HEADER), list(_SCAN), list(_IDENTITY), kind]
        try:
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
            self._open(path)
            found = self._version()
            if found != version and (kind is not None or found[:-1] != version[:-1]):
                self._db.close()
                path.write_bytes(b"")
                self._open(path)
                self._db.execute("CREATE TABLE about (version TEXT)")
                self._db.execute("INSERT INTO about VALUES (?)", (json.dumps(version),))
                self._create()
        except (sqlite3.Error, OSError) as err:
            raise UserError(
                f"{path} cannot be used ({err}): another fm prepare may be at work on the same output; wait for it, or "
                "remove the file"
            ) from None
        self._shared_ids: OrderedDict[str, int] = OrderedDict()
        (last,) = self._db.execute("SELECT coalesce(max(run), 0) FROM files").fetchone()
        self._run = int(last) + 1

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def open_items(self, found: Sequence[Found]) -> list[Found]:
        """Take note of some files of the input; returns those that must be read (again)."""
        left: list[Found] = []
        standing: list[tuple[Any, ...]] = []
        for one in found:
            if one.problem is not None:
                self._put(one, one.problem)
                continue
            row = self._db.execute(
                "SELECT stamp, outcome FROM files WHERE name = ?", (os.fsencode(one.name),)
            ).fetchone()
            if row is not None and row[0] == _stamp(one) and row[1] not in _ASK_AGAIN:
                standing.append((self._run, os.fsencode(one.path), os.fsencode(one.name)))
            else:
                left.append(one)
        self._db.executemany("UPDATE files SET run = ?, path = ? WHERE name = ?", standing)
        return left

    def put(self, found: Iterable[tuple[Found, Outcome]]) -> None:
        """Keep what was read of some files, once and for all."""
        for one, outcome in found:
            self._put(one, outcome)
        self._commit()

    def finish(self) -> None:
        """Every file of the input was named: forget those that are gone, and list the studies."""
        self._db.execute("DELETE FROM files WHERE run != ?", (self._run,))
        self._db.execute("DELETE FROM studies")
        self._db.create_function("study_key", 1, lambda uid: self.keyring.study(_text(uid)), deterministic=True)
        self._db.execute(
            "INSERT INTO studies SELECT study_key(study), study, count(*) FROM files WHERE study IS NOT NULL "
            "GROUP BY study"
        )
        self._commit()

    @property
    def files(self) -> int:
        """Files of the input."""
        (count,) = self._db.execute("SELECT count(*) FROM files").fetchone()
        return int(count)

    @property
    def studies(self) -> Studies:
        """The images by study."""
        return Studies(self)

    def tally(self) -> Tally:
        """What became of the files that belong to no study."""
        tally = Tally()
        rows = self._db.execute(
            "SELECT outcome, count(*) FROM files WHERE study IS NULL GROUP BY outcome ORDER BY outcome"
        )
        tally.excluded.update({word: count for word, count in rows if word in set(Rule)})
        for name, word in self._refused():
            item = self.keyring.item("file", name)
            tally.entries.append(Entry(item=item, kind="file", reason=Reason(word), files=1))
        return tally

    def links(self, source: str) -> Iterator[tuple[str, str, str]]:
        """(keyed id, 'file', place) of the quarantined files, for the table beside the key."""
        for name, _ in self._refused():
            yield self.keyring.item("file", name), "file", os.path.join(source, name) if os.path.isdir(source) else name

    def stamps(self) -> Iterator[str]:
        """Name and stamp of every image, in the order of studies and paths."""
        for name, stamp in self._db.execute(
            "SELECT name, stamp FROM files WHERE study IS NOT NULL ORDER BY study, name"
        ):
            yield f"{os.fsdecode(name)}\0{stamp}"

    def forget(self, studies: Iterable[str]) -> None:
        """Remove studies, by key, from the file itself: deleted rows are overwritten.

        Raises:
            UserError: the disk is full.
        """
        for key in studies:
            self._db.execute("DELETE FROM files WHERE study IN (SELECT uid FROM studies WHERE key = ?)", (key,))
            self._db.execute("DELETE FROM studies WHERE key = ?", (key,))
        self._db.execute(
            "DELETE FROM shared WHERE id NOT IN (SELECT scan FROM files WHERE scan IS NOT NULL "
            "UNION SELECT identity FROM files WHERE identity IS NOT NULL)"
        )
        self._commit()
        self._db.execute("VACUUM")

    def headers(self, uid: str, first_only: bool = False) -> list[Header]:
        """Headers of a study by path; of its first file only where that is enough."""
        rows = self._db.execute(
            "SELECT path, header, scan, identity FROM files WHERE study = ? ORDER BY path"
            + (" LIMIT 1" if first_only else ""),
            (_blob(uid),),
        ).fetchall()
        return [
            Header(
                path=os.fsdecode(path),
                scan=self._load(scan, Scan, _SCAN),
                identity=self._load(identity, Identity, _IDENTITY),
                **dict(zip(_HEADER, _values(header), strict=True)),
            )
            for path, header, scan, identity in rows
        ]

    def _open(self, path: Path) -> None:
        self._db = sqlite3.connect(path, timeout=1.0, isolation_level="DEFERRED")
        # exclusive: one run at a time; what is deleted is overwritten
        for setting in ("locking_mode=EXCLUSIVE", "secure_delete=ON", "synchronous=NORMAL"):
            self._db.execute(f"PRAGMA {setting}").fetchall()
        self._db.execute("BEGIN EXCLUSIVE")
        self._db.commit()

    def _version(self) -> list[Any]:
        try:
            return list(json.loads(self._db.execute("SELECT version FROM about").fetchone()[0]))
        except (sqlite3.DatabaseError, TypeError, ValueError):
            return []

    def _create(self) -> None:
        self._db.execute(
            "CREATE TABLE files (name BLOB PRIMARY KEY, path BLOB, stamp TEXT, run INTEGER, outcome TEXT, study BLOB, "
            "header TEXT, scan INTEGER, identity INTEGER)"
        )
        self._db.execute("CREATE INDEX by_study ON files (study, path)")
        self._db.execute("CREATE TABLE shared (id INTEGER PRIMARY KEY, content TEXT UNIQUE)")
        self._db.execute("CREATE TABLE studies (key TEXT PRIMARY KEY, uid BLOB, files INTEGER)")
        self._db.commit()

    def _put(self, found: Found, outcome: Outcome) -> None:
        row: tuple[Any, ...]
        if isinstance(outcome, Header):
            row = (
                "image",
                _blob(outcome.study_uid),
                json.dumps([getattr(outcome, name) for name in _HEADER]),
                self._keep(json.dumps([getattr(outcome.scan, name) for name in _SCAN])),
                self._keep(json.dumps([getattr(outcome.identity, name) for name in _IDENTITY])),
            )
        else:
            row = (outcome.value, None, None, None, None)
        self._db.execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (os.fsencode(found.name), os.fsencode(found.path), _stamp(found), self._run, *row),
        )

    def _keep(self, content: str) -> int:
        """Number of what the files of a series share."""
        number = self._shared_ids.get(content)
        if number is None:
            self._db.execute("INSERT OR IGNORE INTO shared (content) VALUES (?)", (content,))
            (number,) = self._db.execute("SELECT id FROM shared WHERE content = ?", (content,)).fetchone()
            self._shared_ids[content] = number
            if len(self._shared_ids) > _KEPT_IN_MEMORY:
                self._shared_ids.popitem(last=False)
        return int(number)

    def _load(self, number: int, kind: Any, names: Sequence[str]) -> Any:
        found = self._shared.get(number)
        if found is None:
            (content,) = self._db.execute("SELECT content FROM shared WHERE id = ?", (number,)).fetchone()
            found = self._shared[number] = kind(**dict(zip(names, _values(content), strict=True)))
            if len(self._shared) > _KEPT_IN_MEMORY:
                self._shared.popitem(last=False)
        return found

    def _refused(self) -> Iterator[tuple[str, str]]:
        reasons = sorted(set(Reason) - set(Rule))
        marks = ", ".join("?" * len(reasons))
        query = f"SELECT name, outcome FROM files WHERE study IS NULL AND outcome IN ({marks}) ORDER BY name"
        for name, word in self._db.execute(query, reasons):
            yield os.fsdecode(name), str(word)

    def _commit(self) -> None:
        try:
            self._db.commit()
        except sqlite3.OperationalError as err:
            raise OSError(min(NO_SPACE), f"{self.path}: {err}") from None


class Studies(Mapping[str, list[Header]]):
    """Headers by StudyInstanceUID, read from the catalogue when asked for."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def __getitem__(self, uid: str) -> list[Header]:
        found = self._catalogue.headers(uid)
        if not found:
            raise KeyError(uid)
        return found

    def __contains__(self, uid: object) -> bool:
        return isinstance(uid, str) and bool(self._catalogue.headers(uid, first_only=True))

    def __iter__(self) -> Iterator[str]:
        for (uid,) in self._catalogue._db.execute("SELECT uid FROM studies ORDER BY uid"):
            yield _text(uid)

    def __len__(self) -> int:
        (count,) = self._catalogue._db.execute("SELECT count(*) FROM studies").fetchone()
        return int(count)

    def by_key(self) -> Iterator[tuple[str, str, int]]:
        """Key, UID and files of every study, in the order of the keys."""
        for key, uid, files in self._catalogue._db.execute("SELECT key, uid, files FROM studies ORDER BY key"):
            yield str(key), _text(uid), int(files)

    def first(self, uid: str) -> Header:
        """Header of a study's first file."""
        return self._catalogue.headers(uid, first_only=True)[0]


def _stamp(found: Found) -> str:
    return f"{found.size}:{found.stamp}"


def _values(content: str) -> list[Any]:
    return [tuple(value) if isinstance(value, list) else value for value in json.loads(content)]


def _blob(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(blob: bytes) -> str:
    return blob.decode("utf-8", "surrogatepass")
