"""metrics.jsonl: one row per logged step, the truth about a run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from fm.engine.verdict import write_atomically

METRICS = "metrics.jsonl"
Value = float | int | str | bool | None
Row = dict[str, Value]


class MetricLog:
    """Appends rows; each is on disk when :meth:`write` returns, and no step is there twice."""

    def __init__(self, path: Path, completed_steps: int) -> None:
        """Open the file; rows past `completed_steps` (a killed attempt's) and a torn last row are dropped."""
        self._path = path
        if path.exists():
            kept = [row for row in read_metrics(path) if int(row["step"] or 0) <= completed_steps]
            write_atomically(path, "".join(_line(row) for row in kept).encode())
        self._stream = open(path, "a", encoding="utf-8")  # noqa: SIM115 - lives as long as the run

    def write(self, row: Mapping[str, Value]) -> None:
        """Append a row; it needs a ``step``. A number that is not finite becomes null."""
        self._stream.write(_line(row))
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def read_metrics(path: Path) -> list[Row]:
    """Rows of a metrics file, in order; lines that are no complete row (a kill in mid-write) are left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _line(row: Mapping[str, Value]) -> str:
    clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(clean, allow_nan=False) + "\n"
