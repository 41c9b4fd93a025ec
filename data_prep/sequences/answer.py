"""What a recogniser says of one property of a series: a value, how sure, and the rule that decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer(Generic[Value]):
    """One property of a series."""

    value: Value
    confidence: float
    """From 0 (nothing told) to 1; ranks answers, and is no measured probability."""
    rule: str
    """Name of the rule that decided, in small letters; it quotes nothing of the header."""
