"""What a person sees of a training run: a live line in a terminal, else a plain line about every ten seconds.

It is fed with the rows of metrics.jsonl, so that the process at the terminal need not be the one that trains.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from types import TracebackType
from typing import Any, Self, TextIO

from fm.engine.metrics import Row

LINE_SECONDS = 10.0


class ProgressView:
    """Shows step, loss, accuracy, volumes per second and time left."""

    def __init__(self, max_steps: int, stream: TextIO | None = None) -> None:
        """Prepare the view.

        Args:
            max_steps: steps of the whole run.
            stream: where to write; standard error by default.
        """
        self._max_steps = max_steps
        self._stream = stream or sys.stderr
        self._seconds: deque[float] = deque(maxlen=50)
        self._volumes: deque[float] = deque(maxlen=50)
        self._shown = time.monotonic() - LINE_SECONDS
        self._live: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        """Start the live line where there is a terminal."""
        if self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[facts]}"),
                console=Console(file=self._stream),
            )
            self._live.start()
            self._task = self._live.add_task("starting", total=self._max_steps, facts="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the live line."""
        if self._live is not None:
            self._live.stop()

    def update(self, row: Row) -> None:
        """Take in one row of metrics."""
        for key, window in (("step_s", self._seconds), ("volumes", self._volumes)):
            value = row.get(key)
            if isinstance(value, int | float):
                window.append(float(value))
        facts, step = self.facts(row), int(row["step"] or 0)
        if self._live is not None:
            self._live.update(self._task, completed=step, description="training", facts=facts)
        elif time.monotonic() - self._shown >= LINE_SECONDS or step >= self._max_steps:
            self._shown = time.monotonic()
            print(f"step {step}/{self._max_steps}  {facts}", file=self._stream, flush=True)

    def note(self, text: str) -> None:
        """Show a line that is no progress: a resume, a skipped step."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def facts(self, row: Row) -> str:
        """Loss, accuracy, speed and time left, in words."""
        words = []
        for key, name, form in (("loss", "loss", ".3f"), ("image_text_top1", "image-text top-1", ".0%")):
            value = row.get(key)
            if isinstance(value, int | float):
                words.append(f"{name} {value:{form}}")
        if self._seconds:
            spent = sum(self._seconds)
            words.append(f"{sum(self._volumes) / max(spent, 1e-9):.0f} volumes/s")
            left = (self._max_steps - int(row["step"] or 0)) * statistics.median(self._seconds)
            words.append(f"{_clock(left)} left")
        return "  ".join(words)


def _clock(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
