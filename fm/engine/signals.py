"""Stop signals set a flag, nothing else; the ranks agree on it at the end of each step."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""Signals that mean: save, stop, and run again. Schedulers and torchrun send one of these."""

REQUEUE_EXIT_CODE = 75
"""Exit code for "saved and stopped, run me again" (EX_TEMPFAIL)."""


class StopFlag:
    """Remembers that a stop signal came; a second one changes nothing."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def is_set(self) -> bool:
        """Whether a stop signal came to this process."""
        return self.received is not None

    def install(self) -> None:
        """Take the stop signals over, from Lightning too: its SIGTERM handler broadcasts inside the handler and hangs.

        Installing twice, e.g. again after Lightning put its own handlers in, keeps the flag and the first set of
        handlers to restore.
        """
        for number in STOP_SIGNALS:
            previous = signal.signal(number, self._on_signal)
            self._previous.setdefault(number, previous)

    def restore(self) -> None:
        """Put the earlier handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
