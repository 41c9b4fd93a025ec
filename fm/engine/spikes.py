"""Losses far outside of what the run has seen lately."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable


class SpikeGuard:
    """Compares a loss with the mean and standard deviation of the last losses that were stepped on.

    A skipped loss does not enter the window, else a few of them would make the next one look normal.
    """

    def __init__(self, sigma: float, window: int) -> None:
        """Prepare.

        Args:
            sigma: standard deviations above the mean from which on a loss is a spike; 0: nothing is.
            window: losses to look back on; until there are so many nothing is a spike.
        """
        self._sigma = sigma
        self._losses: deque[float] = deque(maxlen=window)

    def is_spike(self, loss: float) -> bool:
        """Whether a loss is too far above the window's mean; a fall is never one."""
        if not self._sigma or len(self._losses) < (self._losses.maxlen or 0):
            return False
        return loss > statistics.fmean(self._losses) + self._sigma * statistics.pstdev(self._losses)

    def take(self, loss: float) -> None:
        """Remember a loss that was stepped on."""
        if self._sigma and math.isfinite(loss):
            self._losses.append(loss)

    @property
    def losses(self) -> list[float]:
        """The window, oldest first: part of a checkpoint, so that a resumed run judges as the uninterrupted one."""
        return list(self._losses)

    def restore(self, losses: Iterable[float]) -> None:
        """Put a saved window back."""
        self._losses.clear()
        self._losses.extend(losses)
