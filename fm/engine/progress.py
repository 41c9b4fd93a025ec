"""What a person sees of a training run: a live panel in a terminal, else a plain line about every ten seconds.

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
LOSSES = ("self_distillation", "image_text", "phrases", "koleo")
"""Shown beside the loss, and every ``*_loss``."""
PHASES = ("data_s", "forward_s", "backward_s", "optimizer_s", "teacher_s", "save_s")


class ProgressView:
    """Shows steps, time left, losses, throughput, waits, memory and what the guards did."""

    def __init__(self, max_steps: int, stream: TextIO | None = None) -> None:
        """Prepare the view.

        Args:
            max_steps: steps of the whole run.
            stream: where to write; standard error by default.
        """
        self._max_steps = max_steps
        self._stream = stream or sys.stderr
        self._rows: deque[Row] = deque(maxlen=50)
        self._skipped: list[int] = []
        self._shown = time.monotonic() - LINE_SECONDS
        self._live: Any = None
        self._bar: Any = None

    def __enter__(self) -> Self:
        """Start the live panel where there is a terminal."""
        if self._stream.isatty():
            from rich.console import Console
            from rich.live import Live
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=32),
                MofNCompleteColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[left]}"),
            )
            self._bar.add_task("starting", total=self._max_steps, left="")
            self._live = Live(self._bar, console=Console(file=self._stream), refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the live panel; its last state stays."""
        if self._live is not None:
            self._live.stop()

    def update(self, row: Row) -> None:
        """Take in one row of metrics."""
        self._rows.append(row)
        step = int(row["step"] or 0)
        if row.get("applied") is False:
            self._skipped.append(step)
        if self._live is not None:
            self._bar.update(0, completed=step, description="training", left=self._left(step))
            self._live.update(self._panel())
        elif time.monotonic() - self._shown >= LINE_SECONDS or step >= self._max_steps:
            self._shown = time.monotonic()
            print(f"step {step}/{self._max_steps}  {self.facts(row)}", file=self._stream, flush=True)

    def note(self, text: str) -> None:
        """Show a line that is no progress: a resume, a skipped step."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def facts(self, row: Row) -> str:
        """Loss, accuracy, speed, waiting and time left on one line."""
        words = []
        for key, name, form in (("loss", "loss", ".3f"), ("image_text_top1", "image-text top-1", ".0%")):
            value = row.get(key)
            if isinstance(value, int | float):
                words.append(f"{name} {value:{form}}")
        if speed := self._rate("volumes"):
            words.append(f"{speed:.0f} volumes/s")
        if (wait := self._share("data_wait_s")) is not None:
            words.append(f"data wait {wait:.0%}")
        if self._skipped:
            words.append(f"{len(self._skipped)} skipped")
        words.append(self._left(int(row["step"] or 0)))
        return "  ".join(word for word in words if word)

    def details(self) -> list[tuple[str, str]]:
        """The lines of the panel below the bar: a title and its facts."""
        row = self._rows[-1]
        names = [n for n in row if n in LOSSES or n.endswith("_loss")]
        loss = [f"{row['loss']:.4f}"] if _number(row.get("loss")) else []
        loss += [f"{name} {row[name]:.4f}" for name in names if _number(row.get(name))]
        if _number(row.get("image_text_top1")):
            loss.append(f"image-text top-1 {row['image_text_top1']:.0%}")
        speed = [f"{rate:,.4g} {unit}/s" for key, unit in (("volumes", "volumes"),) if (rate := self._rate(key))]
        for key, form in (
            ("tokens_per_s", "{:,.0f} tokens/s"),
            ("tflops_per_device", "{:.3g} TFLOP/s a device"),
            ("mfu", "MFU {:.1%}"),
        ):
            if (value := self._median(key)) is not None:
                speed.append(form.format(value))
        step_s, wait = self._median("step_s"), self._share("data_wait_s")
        spent = [] if step_s is None else [f"{step_s:.3g} s"]
        spent += [f"{name[:-2]} {share:.0%}" for name in PHASES if (share := self._share(name))]
        memory = [f"{row['peak_memory_gb']:.2f} GiB at most"] if _number(row.get("peak_memory_gb")) else []
        guards = [f"skipped steps {len(self._skipped)}"]
        guards += [f"the last at {self._skipped[-1]}"] if self._skipped else []
        if _number(row.get("gradient_norm")):
            guards.append(f"gradient norm {row['gradient_norm']:.3g}")
        slow, usual = row.get("slowest_rank_s"), row.get("median_rank_s")
        if _number(slow) and _number(usual) and usual:
            guards.append(f"slowest rank {row.get('slowest_rank')}, {float(slow or 0) / float(usual):.2f} × the median")
        lines = {
            "loss": loss,
            "speed": speed,
            "step": spent,
            "waiting": [] if wait is None else [f"{wait:.0%} of the time for data"],
            "memory": memory,
            "guards": guards,
        }
        return [(title, " · ".join(words)) for title, words in lines.items() if words]

    def _panel(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1, 0, 0))
        for title, facts in self.details():
            table.add_row(Text(title, style="dim"), Text(facts))
        return Group(self._bar, table)

    def _values(self, key: str) -> list[float]:
        return [float(value) for row in self._rows if _number(value := row.get(key)) and value is not None]

    def _median(self, key: str) -> float | None:
        values = self._values(key)
        return statistics.median(values) if values else None

    def _rate(self, key: str) -> float:
        """Sum of a count per second, over the newest rows."""
        return sum(self._values(key)) / max(sum(self._values("step_s")), 1e-9) if self._values("step_s") else 0.0

    def _share(self, key: str) -> float | None:
        values, spent = self._values(key), sum(self._values("step_s"))
        return sum(values) / spent if values and spent else None

    def _left(self, step: int) -> str:
        usual = self._median("step_s")
        return "" if usual is None else f"{_clock((self._max_steps - step) * usual)} left"


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _clock(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
