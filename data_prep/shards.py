"""Shards written one after another, each whole or not at all, so that a killed run goes on where it stopped.

Studies come in the order of their keys and a shard closes by its size, so where one shard ends depends on the data
alone: any number of workers and of interruptions gives the same bytes. Beside each finished shard lies a small state
file that says which studies it settled, those of which nothing was left included.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import webdataset

from data_prep.ledger import Account
from data_prep.study import StudyResult
from fm.config.errors import UserError
from fm.data.index import Member, Sample, Shard, open_store
from fm.data.verify import scan_shard


@dataclass(kw_only=True, slots=True)
class Settled:
    """Studies that one state file accounts for."""

    shard: Shard | None
    """None where nothing was left of any of them."""
    samples: list[Sample]
    accounts: list[Account]


@dataclass(slots=True)
class ShardStore:
    """The output folder and the state of the run, which lies in `work` until the dataset is complete.

    What was settled is read from its files when asked for: memory holds the names of shards and studies alone.
    """

    out: str
    work: Path
    fingerprint: str
    first: int = 0
    """Number of the first shard: those before it stand already."""
    shards: list[Shard] = field(default_factory=list)
    """All finished shards of this run, in order."""
    states: int = 0
    """Finished state files."""

    def resume(self) -> set[str]:
        """Take over what an earlier run of the same inputs and settings finished; returns its study keys.

        Another run's state, and everything after a shard that is missing or damaged, is thrown away.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        mark = self.work / "fingerprint"
        if not mark.exists() or mark.read_text() != self.fingerprint:
            shutil.rmtree(self.work)
            self.work.mkdir(parents=True)
            write_file(mark, self.fingerprint.encode())
        done: set[str] = set()
        for path in sorted(self.work.glob("state-*.json")):
            found = _read_state(path)
            if found is None or not self._stands(found.shard):
                break
            done.update(account.study for account in found.accounts)
            self.shards += [found.shard] if found.shard is not None else []
            self.states += 1
        for stale in sorted(self.work.glob("state-*.json"))[self.states :]:
            stale.unlink()
        return done

    def close(self, temporary: Path | None, accounts: Sequence[Account]) -> None:
        """Publish a shard (None: nothing was written) and settle its studies.

        Raises:
            OSError: the disk is full.
        """
        shard: Shard | None = None
        samples: list[Sample] = []
        if temporary is not None:
            name = f"shard-{self.first + len(self.shards):06d}.tar"
            with temporary.open("rb") as stream:
                shard, samples = scan_shard(stream, name)
            publish_file(self.out, temporary, name)
        settled = Settled(shard=shard, samples=samples, accounts=list(accounts))
        path = self.work / f"state-{self.states:06d}.json"
        write_file(path, json.dumps(_plain(settled), sort_keys=True).encode())
        self.states += 1
        self.shards += [shard] if shard is not None else []

    def settled(self) -> Iterator[Settled]:
        """What was settled, in order.

        Raises:
            UserError: a state file was changed or removed under the run.
        """
        for number in range(self.states):
            found = _read_state(self.work / f"state-{number:06d}.json")
            if found is None:
                raise UserError(f"{self.work} was changed while fm prepare ran; run the same command again")
            yield found

    def full(self) -> str:
        """What to say when the disk is full."""
        return (
            f"the disk is full while writing {self.out}: {len(self.shards)} finished shards are kept; free some space "
            "and run the same command again, it goes on"
        )

    def _stands(self, shard: Shard | None) -> bool:
        if shard is None:
            return True
        fs, root = open_store(self.out)
        try:
            with fs.open(f"{root}/{shard.name}", "rb") as stream:
                found, _ = scan_shard(stream, shard.name)
        except (OSError, UserError):
            return False
        return found == shard


def publish_file(out: str, temporary: Path, name: str) -> None:
    """Move a finished file into the output, whole or not at all."""
    fs, root = open_store(out)
    if "file" in fs.protocol:
        os.replace(temporary, Path(root) / name)
        return
    fs.put_file(str(temporary), f"{root}/{name}")
    temporary.unlink()


class ShardBuilder:
    """Collects results in order and closes a shard once it is large enough."""

    def __init__(self, store: ShardStore, shard_bytes: int) -> None:
        self.store = store
        self.shard_bytes = shard_bytes
        self._accounts: list[Account] = []
        self._temporary = self.store.work / "shard.tmp"
        self._file: BinaryIO | None = None
        self._writer: Any = None

    def add(self, result: StudyResult, source: str) -> None:
        """Append one study.

        Args:
            result: what became of it.
            source: keyed hash of what it was made from.

        Raises:
            OSError: the disk is full.
        """
        if result.members:
            with self._abandoning():
                if self._file is None:
                    self._file = self._temporary.open("wb")
                    # no owner, no time: the same studies give the same bytes
                    self._writer = webdataset.TarWriter(self._file, user="", group="", mtime=0, encoder=False)
                self._writer.write({"__key__": result.key, **result.members})
        size = self._file.tell() if self._file is not None else 0
        self._accounts.append(
            Account(
                study=result.key,
                patient=result.patient,
                source=source,
                tally=result.tally,
                members=bool(result.members),
                report=result.has_report,
            )
        )
        if size >= self.shard_bytes:
            self.finish()

    def finish(self) -> None:
        """Close the shard under way.

        Raises:
            OSError: the disk is full.
        """
        if not self._accounts:
            return
        if self._file is not None:
            with self._abandoning():
                self._writer.close()
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
        self.store.close(self._temporary if self._file is not None else None, self._accounts)
        self._accounts, self._file, self._writer = [], None, None

    @contextlib.contextmanager
    def _abandoning(self) -> Iterator[None]:
        """Give a shard up whose disk is full; left open, writer and file would try again when they are collected."""
        try:
            yield
        except OSError:
            for part in (self._writer, self._file):
                if part is not None:
                    with contextlib.suppress(OSError):
                        part.close()
            raise


def write_file(path: Path, payload: bytes) -> None:
    """Write a file of this machine, whole or not at all, and wait until it is on the disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _plain(settled: Settled) -> dict[str, Any]:
    return {
        "shard": None if settled.shard is None else asdict(settled.shard),
        "samples": [asdict(sample) for sample in settled.samples],
        "accounts": [account.as_json() for account in settled.accounts],
    }


def _read_state(path: Path) -> Settled | None:
    try:
        raw = json.loads(path.read_bytes())
        return Settled(
            shard=None if raw["shard"] is None else Shard(**raw["shard"]),
            samples=[
                Sample(**{**row, "members": {name: Member(**m) for name, m in row["members"].items()}})
                for row in raw["samples"]
            ],
            accounts=[Account.from_json(account) for account in raw["accounts"]],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
