"""Figures of the report as inline SVG, drawn with the page's own fonts; every system keeps its colour and its shape."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from evals.results import SYSTEM_WORDS, System, TaskResult
from fm.probes.bootstrap import Interval

COLOURS = {
    System.ENCODER: "#0072b2",
    System.UNTRAINED: "#d55e00",
    System.INTENSITY: "#009e73",
    System.HEADER: "#aa4499",
    System.CHANCE: "#6b7280",
}
"""Okabe–Ito, its pink darkened for thin lines on white; told apart by shape as well."""
GRID, INK, FAINT = "#e5e7eb", "#374151", "#9ca3af"


def marker(system: System, x: float, y: float, size: float = 4.5) -> str:
    """The mark of a system: disc, diamond, square, triangle, bar."""
    colour = COLOURS[system]
    r = size
    if system is System.ENCODER:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" fill="{colour}"/>'
    points = {
        System.UNTRAINED: [(x, y - r), (x + r, y), (x, y + r), (x - r, y)],
        System.INTENSITY: [
            (x - r * 0.8, y - r * 0.8),
            (x + r * 0.8, y - r * 0.8),
            (x + r * 0.8, y + r * 0.8),
            (x - r * 0.8, y + r * 0.8),
        ],
        System.HEADER: [(x, y - r), (x + r, y + r * 0.8), (x - r, y + r * 0.8)],
        System.CHANCE: [(x - 1, y - r), (x + 1, y - r), (x + 1, y + r), (x - 1, y + r)],
    }[system]
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
    return f'<polygon points="{path}" fill="{colour}"/>'


def whisker(
    found: Interval,
    system: System,
    low: float,
    high: float,
    reference: float | None,
    width: int = 170,
    height: int = 20,
) -> str:
    """One row of an interval plot: the estimate's mark on its interval, and a line at `reference`."""
    axis = Axis(low, high, 6, width - 6)
    y = height / 2
    parts = [f'<line x1="6" x2="{width - 6}" y1="{y}" y2="{y}" stroke="{GRID}"/>']
    if reference is not None:
        at = axis.at(reference)
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{height}" stroke="{FAINT}" stroke-dasharray="2 2"/>'
        )
    if found.low is not None and found.high is not None:
        a, b = axis.at(found.low), axis.at(found.high)
        parts.append(
            f'<line x1="{a:.1f}" x2="{b:.1f}" y1="{y}" y2="{y}" stroke="{COLOURS[system]}" stroke-width="2.5" '
            'stroke-linecap="round"/>'
        )
    parts.append(marker(system, axis.at(found.value), y))
    return _svg(width, height, parts, f"{SYSTEM_WORDS[system]}: {_spoken(found)}")


def scale(low: float, high: float, ticks: Sequence[float], width: int = 170) -> str:
    """The axis above a column of :func:`whisker`."""
    axis = Axis(low, high, 6, width - 6)
    parts = [
        f'<text x="{axis.at(t):.1f}" y="11" text-anchor="{_anchor(t, low, high)}" class="tick">{t:g}</text>'
        f'<line x1="{axis.at(t):.1f}" x2="{axis.at(t):.1f}" y1="14" y2="18" stroke="{FAINT}"/>'
        for t in ticks
    ]
    return _svg(width, 18, parts, "axis")


def overview(tasks: Sequence[TaskResult], probe: str = "linear", width: int = 1080) -> str:
    """All tasks at a glance: one line per task, one mark and interval per system, AUROC along x."""
    left, row, top = 330, 50, 34
    lowest = min(s.auroc.low if s.auroc.low is not None else s.auroc.value for t in tasks for s in t.scores)
    low = max(0.0, min(0.4, int(lowest * 10) / 10))
    height = top + row * len(tasks) + 6
    axis = Axis(low, 1.0, left, width - 20)
    ticks = [round(low + i / 10, 1) for i in range(round((1.0 - low) * 10) + 1)]
    parts = []
    for tick in ticks:
        x = axis.at(tick)
        dash = f' stroke-dasharray="3 3" stroke="{FAINT}"' if tick == 0.5 else f' stroke="{GRID}"'
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top - 8}" y2="{height - 6}"{dash}/>')
        words = "0.5 (chance)" if tick == 0.5 else f"{tick:g}"
        parts.append(f'<text x="{x:.1f}" y="{top - 14}" text-anchor="middle" class="tick">{words}</text>')
    for i, task in enumerate(tasks):
        y = top + row * i
        parts.append(f'<line x1="0" x2="{width}" y1="{y}" y2="{y}" stroke="{GRID}"/>')
        parts.append(f'<text x="0" y="{y + 22}" class="label">{escape(_short(task.question, 48))}</text>')
        counts = ", ".join(f"{n} {name}" for name, n in task.test.items()) if len(task.test) <= 2 else ""
        counts = counts or f"{sum(task.test.values())} {task.level} rows, {len(task.test)} classes"
        parts.append(f'<text x="0" y="{y + 38}" class="tick">{escape(counts)}</text>')
        shown = [s for s in task.scores if s.probe == probe and s.system is not System.CHANCE]
        for j, score in enumerate(shown):
            at = y + 10 + j * 10
            found = score.auroc
            if found.low is not None and found.high is not None:
                parts.append(
                    f'<line x1="{axis.at(found.low):.1f}" x2="{axis.at(found.high):.1f}" y1="{at}" y2="{at}" '
                    f'stroke="{COLOURS[score.system]}" stroke-width="2" stroke-linecap="round" opacity="0.75"/>'
                )
            parts.append(marker(score.system, axis.at(found.value), at, 4.2))
    return _svg(width, height, parts, "AUROC of every task and system; the tables below hold the numbers")


def roc(task: TaskResult, probe: str = "linear", size: int = 250) -> str:
    """ROC curves of one two-class task."""
    left, top, edge = 40, 10, size - 34
    x_axis, y_axis = Axis(0, 1, left, left + edge - 10), Axis(0, 1, top + edge - 14, top)
    bottom, right = y_axis.at(0), x_axis.at(1)
    parts = []
    for tick in (0.0, 0.5, 1.0):
        x, y = x_axis.at(tick), y_axis.at(tick)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="{GRID}"/>')
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 14:.1f}" text-anchor="middle" class="tick">{tick:g}</text>')
        parts.append(f'<text x="{left - 5}" y="{y + 4:.1f}" text-anchor="end" class="tick">{tick:g}</text>')
    parts.append(f'<line x1="{left}" y1="{bottom}" x2="{right}" y2="{top}" stroke="{FAINT}" stroke-dasharray="3 3"/>')
    drawn = [s for s in task.scores if s.probe == probe and s.roc]
    for score in reversed(drawn):
        points = " ".join(f"{x_axis.at(f):.1f},{y_axis.at(t):.1f}" for f, t in score.roc or [])
        thick = 2.4 if score.system is System.ENCODER else 1.3
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{COLOURS[score.system]}" stroke-width="{thick}"/>'
        )
    middle = (left + right) / 2
    parts.append(
        f'<text x="{middle}" y="{bottom + 28:.1f}" text-anchor="middle" class="tick">False positive rate</text>'
    )
    parts.append(
        f'<text transform="translate(11 {(top + bottom) / 2:.1f}) rotate(-90)" text-anchor="middle" class="tick">'
        "True positive rate</text>"
    )
    return _svg(size, int(bottom + 34), parts, f"ROC curves: {task.question}")


def curve(title: str, steps: Sequence[float], values: Sequence[float], width: int = 340, height: int = 190) -> str:
    """One training curve: every value as a thin line, its running mean as a thick one."""
    left, right, top, bottom = 52, width - 12, 28, height - 30
    low, high = min(values), max(values)
    pad = (high - low) * 0.06 or max(abs(high), 1e-6) * 0.1
    x_axis = Axis(steps[0], steps[-1], left, right)
    y_axis = Axis(low - pad, high + pad, bottom, top)
    parts = [f'<text x="{left}" y="14" class="label">{escape(title)}</text>']
    for tick in _nice(low, high, 4):
        y = y_axis.at(tick)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" class="tick">{tick:g}</text>')
    for tick in _nice(steps[0], steps[-1], 4):
        parts.append(
            f'<text x="{x_axis.at(tick):.1f}" y="{bottom + 15}" text-anchor="middle" class="tick">{tick:g}</text>'
        )
    parts.append(f'<text x="{(left + right) / 2}" y="{bottom + 28}" text-anchor="middle" class="tick">step</text>')
    for series, style in (
        (values, f'stroke="{FAINT}" stroke-width="1"'),
        (_smooth(values), 'stroke="#0072b2" stroke-width="2"'),
    ):
        points = " ".join(f"{x_axis.at(s):.1f},{y_axis.at(v):.1f}" for s, v in zip(steps, series, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" {style} stroke-linejoin="round"/>')
    return _svg(width, height, parts, f"{title}: from {values[0]:.3g} to {values[-1]:.3g}")


class Axis:
    """A linear map from values to pixels, held within its ends."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high if high > low else low + 1.0, start, end

    def at(self, value: float) -> float:
        """Pixel of a value."""
        share = min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)
        return self.start + share * (self.end - self.start)


def _svg(width: int, height: int, parts: Sequence[str], spoken: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(spoken, quote=True)}">{"".join(parts)}</svg>'
    )


def _anchor(value: float, low: float, high: float) -> str:
    return "start" if value <= low else "end" if value >= high else "middle"


def _spoken(found: Interval) -> str:
    if found.low is None or found.high is None:
        return f"{found.value:.3f}"
    return f"{found.value:.3f}, from {found.low:.3f} to {found.high:.3f}"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _smooth(values: Sequence[float]) -> list[float]:
    """Mean over a window of about a twentieth of the curve around each point, narrower at the ends."""
    reach = max(1, len(values) // 40)
    windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _nice(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers between two values."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** _floor_log10(rough)
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = int(low / step) - 1
    marks = [round((first + i) * step, 10) for i in range(3 * count + 4)]
    return [m for m in marks if low <= m <= high]


def _floor_log10(value: float) -> int:
    power = 0
    while value >= 10:
        value, power = value / 10, power + 1
    while value < 1:
        value, power = value * 10, power - 1
    return power
