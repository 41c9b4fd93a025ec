"""One file of an input, before it is looked into."""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.ledger import Reason, Rule

SUFFIXES = (".dcm", ".ima", ".dic", ".dicom", ".mr")
"""Of DICOM files."""


@dataclass(kw_only=True, slots=True)
class Found:
    """One file of the input."""

    path: str
    """Where it can be read."""
    name: str
    """Where it lies in the input; ``archive.zip!/member`` in an archive."""
    problem: Rule | Reason | None = None
    """Why it cannot be an image; None where it must be looked at."""
    size: int = 0
    """Bytes."""
    stamp: str = ""
    """Changes with the content, as far as the place tells: time of the last change, checksum, or entity tag."""
