"""What a committed checkpoint lists of itself, and how its files are held against that."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from fm.config.errors import UserError

MANIFEST = "manifest.json"
COMMITTED = "COMMITTED"
"""Holds the SHA-256 of the manifest; it is written last, and goes first."""
_STEP = re.compile(r"step-(\d{8})")


class CheckpointError(UserError):
    """A checkpoint that cannot be used, or none that can."""


@dataclass(kw_only=True, slots=True)
class Entry:
    """One file of a manifest."""

    bytes: int
    sha256: str


def step_name(step: int) -> str:
    """Name of a step's folder."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step that a folder's name means; None for any other name."""
    found = _STEP.fullmatch(name)
    return int(found[1]) if found else None


def write_manifest(step: int, files: Mapping[str, Entry]) -> bytes:
    """The bytes of a manifest."""
    listed = {name: {"bytes": entry.bytes, "sha256": entry.sha256} for name, entry in files.items()}
    return json.dumps({"step": step, "files": listed}, sort_keys=True).encode()


def read_manifest(where: str, manifest: bytes, committed: bytes) -> dict[str, Entry]:
    """The files that a committed manifest lists.

    Raises:
        CheckpointError: it is not the one that was committed, or names a file outside its folder.
    """
    if hashlib.sha256(manifest).hexdigest() != committed.decode(errors="replace").strip():
        raise CheckpointError(f"checkpoint {where}: its manifest was changed after the commit")
    try:
        listed = {name: Entry(**entry) for name, entry in json.loads(manifest)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise CheckpointError(f"checkpoint {where}: not committed ({type(err).__name__})") from err
    for name in listed:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise CheckpointError(f"checkpoint {where}: its manifest names {name!r}, outside its folder")
    return listed


def check_sizes(where: str, present: Mapping[str, int], listed: Mapping[str, Entry]) -> None:
    """Hold the files of a step against its manifest by name and size.

    Raises:
        CheckpointError: one is missing, was added, or has another size.
    """
    if difference := sorted(set(present) ^ set(listed)):
        what = "is missing" if difference[0] in listed else "is in no manifest"
        raise CheckpointError(f"checkpoint {where}: {difference[0]} {what}")
    for name, size in present.items():
        if size != listed[name].bytes:
            raise CheckpointError(f"checkpoint {where}: {name} has {size} bytes, not {listed[name].bytes}")


def check_hash(where: str, name: str, digest: str, entry: Entry) -> None:
    """Hold a file's content against the manifest.

    Raises:
        CheckpointError: it is another.
    """
    if digest != entry.sha256:
        raise CheckpointError(f"checkpoint {where}: {name} does not have the SHA-256 of the manifest")
