"""DICOM element values of any shape as plain Python ones."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any


def words_of(value: Any) -> tuple[str, ...]:
    """A DICOM value of any multiplicity as strings."""
    if value is None or value == "":
        return ()
    if isinstance(value, str) or not isinstance(value, Iterable) or hasattr(value, "family_name"):
        return (str(value).strip(),)
    return tuple(str(part).strip() for part in value)


def number(value: Any) -> float | None:
    """A DICOM number, the first of several; None where it is absent, unparsable or not finite."""
    if value is None or value == "":
        return None
    if isinstance(value, Iterable) and not isinstance(value, str):
        value = next(iter(value), None)
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """Exactly `count` DICOM numbers; None where there are fewer, more, or one is none."""
    if value is None or isinstance(value, str) or not isinstance(value, Iterable):
        return None
    found = [number(part) for part in value]
    if len(found) != count or any(part is None for part in found):
        return None
    return tuple(part for part in found if part is not None)
