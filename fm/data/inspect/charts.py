"""Charts of the inspection page, as SVG that stands in the page itself."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from fm.data.inspect.contents import Cross

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")
"""Of Okabe and Ito: told apart by colour-blind eyes."""
_INK, _GRID = "#1f2933", "#e4e7eb"
_MOST_ROWS = 18
_MOST_POINTS = 4000
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": "#9aa5b1",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _GRID,
}


def stacked(cross: Cross, unit: str, columns: Sequence[str]) -> str:
    """Rows of a cross table as bars, the longest first, stacked by column."""
    totals: Counter[str] = Counter()
    for (row, _), count in cross.items():
        totals[row] += count
    shown = [row for row, _ in totals.most_common(_MOST_ROWS)]
    heights = np.array([[cross.get((row, column), 0) for row in shown] for column in columns], dtype=float)
    names = list(shown)
    if len(totals) > len(shown):
        rest = [sum(n for (r, c), n in cross.items() if c == column and r not in shown) for column in columns]
        heights, names = np.column_stack([heights, rest]), [*names, f"{len(totals) - len(shown)} others"]
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(5.4, 0.65 + 0.27 * len(names))
        left = np.zeros(len(names))
        for column, height, colour in zip(columns, heights, COLOURS, strict=False):
            axes.barh(range(len(names)), height, left=left, color=colour, height=0.7, label=column)
            left += height
        for y, total in enumerate(left):
            axes.text(total, y, f" {total:.0f}", va="center", fontsize=8.5)
        axes.set_yticks(range(len(names)), [_short(name) for name in names])
        axes.invert_yaxis()
        axes.set_xlim(0, max(left.max(), 1) * 1.12)
        axes.set_xlabel(unit)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        if len(columns) > 1:
            axes.legend(frameon=False, ncols=len(columns), loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)
        return _svg(figure)


def histogram(values: Mapping[str, Sequence[float]], label: str, unit: str, mark: float | None = None) -> str:
    """Values of each group, stacked; a dashed line at `mark`."""
    groups = [group for group in sorted(values, reverse=True) if len(values[group])]
    joined = np.concatenate([np.asarray(values[group], dtype=float) for group in groups])
    whole = np.equal(joined, np.round(joined)).all()
    low, high = joined.min(), max(joined.max(), 0 if mark is None else mark)
    if whole and high - low <= 40:
        edges = np.arange(low - 0.5, high + 1.5)
    else:
        edges = np.linspace(low, high if high > low else low + 1, 31)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(5.4, 2.4)
        axes.hist([values[g] for g in groups], edges, stacked=True, color=list(COLOURS[: len(groups)]), label=groups)
        if mark is not None:
            axes.axvline(mark, color="#d55e00", linestyle="--", linewidth=1.2)
        axes.set_xlabel(label)
        axes.set_ylabel(unit)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        if len(groups) > 1:
            axes.legend(frameon=False, ncols=len(groups), loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)
        return _svg(figure)


def heat(cross: Cross, rows: Sequence[str], columns: Sequence[str], share_of: Mapping[str, int] | None = None) -> str:
    """A cross table as squares with their numbers; with `share_of`, as a share of each row's total."""
    table = np.array([[cross.get((row, column), 0) for column in columns] for row in rows], dtype=float)
    if share_of is not None:
        table /= np.maximum([[share_of[row]] for row in rows], 1)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(1.9 + 0.72 * len(columns), 0.75 + 0.33 * len(rows))
        top = 1.0 if share_of is not None else max(table.max(), 1)
        scale = np.sqrt(table / top)  # rare ones stay visible beside common ones
        axes.imshow(scale, cmap="Blues", vmin=0, vmax=1.25, aspect="auto")
        for (y, x), value in np.ndenumerate(table):
            if value > 0:
                text = f"{100 * value:.0f} %" if share_of is not None else f"{value:.0f}"
                axes.text(
                    x, y, text, ha="center", va="center", fontsize=8.5, color="white" if scale[y, x] > 0.8 else _INK
                )
        axes.set_xticks(range(len(columns)), [_short(c, 14) for c in columns], rotation=35, ha="left")
        axes.xaxis.tick_top()
        axes.set_yticks(range(len(rows)), [_short(row) for row in rows])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return _svg(figure)


def spacings(spacing_mm: Sequence[tuple[float, float, str]]) -> str:
    """In-plane spacing against slice spacing of each series, both logarithmic, by contrast."""
    step = max(1, len(spacing_mm) // _MOST_POINTS)
    kept = spacing_mm[::step]
    common = [name for name, _ in Counter(contrast for *_, contrast in spacing_mm).most_common(len(COLOURS) - 1)]
    jitter = np.exp(np.random.default_rng(0).normal(0, 0.012, (len(kept), 2)))
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(5.4, 3.6)
        for name, colour in zip([*common, "others"], COLOURS, strict=False):
            mine = [
                i for i, (*_, contrast) in enumerate(kept) if (contrast if contrast in common else "others") == name
            ]
            if mine:
                x, y = ([kept[i][axis] * jitter[i, axis] for i in mine] for axis in (1, 0))
                axes.scatter(x, y, s=12, alpha=0.55, color=colour, linewidths=0, label=name)
        axes.set(xscale="log", yscale="log", xlabel="in-plane spacing, mm", ylabel="slice spacing, mm")
        _plain_ticks(axes.xaxis, [s for _, s, _ in kept])
        _plain_ticks(axes.yaxis, [s for s, _, _ in kept])
        axes.grid(which="both")
        axes.set_axisbelow(True)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return _svg(figure)


def shapes(sizes: Sequence[tuple[int, int, int]]) -> str:
    """Slices against in-plane matrix of each series."""
    kept = sizes[:: max(1, len(sizes) // _MOST_POINTS)]
    jitter = np.random.default_rng(0).normal(0, 0.6, (len(kept), 2))
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(5.4, 3.2)
        axes.scatter(
            [(h * w) ** 0.5 + j for (_, h, w), j in zip(kept, jitter[:, 0], strict=True)],
            [d + j * 0.3 for (d, _, _), j in zip(kept, jitter[:, 1], strict=True)],
            s=12, alpha=0.45, color=COLOURS[0], linewidths=0,
        )  # fmt: skip
        axes.set(xlabel="in-plane voxels, √(H × W)", ylabel="slices, D", ylim=(0, None), xlim=(0, None))
        axes.grid()
        axes.set_axisbelow(True)
        return _svg(figure)


def _plain_ticks(axis: Any, values: Sequence[float]) -> None:
    """Ticks at round lengths that people know, in place of powers of ten."""
    low, high = min(values) * 0.85, max(values) * 1.18
    round_mm = [v for v in (0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20) if low <= v <= high]
    axis.set_ticks(round_mm, [f"{v:g}" for v in round_mm])
    axis.set_ticks([], minor=True)
    (axis.axes.set_xlim if axis.axis_name == "x" else axis.axes.set_ylim)(low, high)


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure) -> str:
    sink = io.StringIO()
    # Equal charts give equal text: no date, and names that depend on what is drawn.
    with matplotlib.rc_context({"svg.hashsalt": "fm"}):
        figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = sink.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)


def _short(text: str, most: int = 26) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
