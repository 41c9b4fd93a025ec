"""How an attempt ended, in a file: launchers lose exit codes, so the run folder says it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path


class Outcome(StrEnum):
    """How an attempt ended."""

    DONE = "done"
    REQUEUE = "requeue"
    """Saved and stopped by a signal: run again to go on."""
    FAILED = "failed"


@dataclass(kw_only=True, slots=True)
class Verdict:
    """The end of one attempt."""

    attempt: str
    outcome: Outcome
    step: int
    """Steps completed and saved."""
    message: str = ""


VERDICTS = "verdicts.jsonl"
"""The verdicts of all attempts that left one, oldest first; ``verdict.json`` is the newest."""


def write_verdict(run_dir: Path, verdict: Verdict) -> None:
    """Write ``verdict.json`` in one step and keep a copy for the run's story; call it after the checkpoint's commit."""
    line = json.dumps(asdict(verdict))
    with open(run_dir / VERDICTS, "a", encoding="utf-8") as stream:
        stream.write(line + "\n")
    write_atomically(run_dir / "verdict.json", line.encode())


def read_verdict(run_dir: Path, attempt: str) -> Verdict | None:
    """The verdict of an attempt, or None where it left none (it was killed)."""
    try:
        raw = json.loads((run_dir / "verdict.json").read_text())
        verdict = Verdict(**{**raw, "outcome": Outcome(raw["outcome"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return verdict if verdict.attempt == attempt else None


def read_verdicts(run_dir: Path) -> dict[str, Verdict]:
    """Attempt → its verdict; an attempt that was killed has none."""
    found = {}
    paths = [path for path in (run_dir / VERDICTS, run_dir / "verdict.json") if path.is_file()]
    for line in [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]:
        try:
            raw = json.loads(line)
            found[str(raw["attempt"])] = Verdict(**{**raw, "outcome": Outcome(raw["outcome"])})
        except (ValueError, TypeError, KeyError):
            continue
    return found


def write_atomically(path: Path, payload: bytes) -> None:
    """Replace a file in one step and make it durable: a reader sees the old content or the new, never a part."""
    partial = path.with_name(path.name + ".tmp")
    with open(partial, "wb") as stream:
        stream.write(payload)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
