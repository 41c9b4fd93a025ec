"""Which part of a step a rank is in, and how long each part took."""

from __future__ import annotations

import time


class Phases:
    """A clock with one hand: entering a phase ends the one before.

    On a GPU the host runs ahead: a phase's work is counted where the host next waits for it, at the latest when the
    ranks agree on the loss (forward) and when the gradient norm is read (backward and optimizer).
    """

    def __init__(self) -> None:
        self.current = "start"
        self.since = time.monotonic()
        """When the current phase was entered; read by the watchdog's thread."""
        self._seconds: dict[str, float] = {}

    def enter(self, name: str) -> None:
        """Leave the current phase for `name`."""
        now = time.monotonic()
        self._seconds[self.current] = self._seconds.get(self.current, 0.0) + now - self.since
        self.current, self.since = name, now

    def take(self) -> dict[str, float]:
        """Seconds of each phase since the last call; the current phase up to now."""
        self.enter(self.current)
        taken, self._seconds = self._seconds, {}
        return taken
