"""The inspection page: one HTML file that needs nothing else."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fm.data.inspect import charts
from fm.data.inspect.contents import Contents, Cross, label_rows
from fm.data.inspect.views import Sheet

FOLDER = Path(__file__).parent
_MOST_SETS = 14


def render(found: Contents, sheets: Sequence[Sheet], views: dict[str, Any] | None) -> str:
    """The page as HTML.

    Args:
        found: the counts.
        sheets: contact sheets, one per study; may be empty.
        views: what the sheets were drawn with, by name; None where none was asked for.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(size=size, share=_share)
    return environment.get_template("page.html.j2").render(
        c=found,
        css=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        figures={name: Markup(svg) for name, svg in _figures(found).items()},
        totals=_totals(found),
        sets=found.sets.most_common(_MOST_SETS),
        label_rows=label_rows(found),
        quarantine=sorted(found.quarantine.items(), key=lambda item: -item[1]),
        incomplete=sum(count for missing, count in found.missing_slices.items() if missing),
        sheets=sheets,
        views=views,
    )


def write_page(path: Path, page: str) -> None:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)


def size(count: float) -> str:
    """Bytes in words: 1.4 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _figures(found: Contents) -> dict[str, str]:
    """Charts by name; what a dataset does not say has none."""
    splits = sorted(found.splits, reverse=True)  # train before test
    charted: dict[str, str] = {}
    if not found.read:
        return charted
    contrasts, regions = _rows(found.planes), _rows(found.regions)
    studies_of = {region: sum(n for (r, _), n in found.regions.items() if r == region) for region in regions}
    charted["contrasts"] = charts.heat(found.planes, contrasts, _columns(found.planes))
    charted["agents"] = charts.heat(found.agents, contrasts, ["yes", "no", "unknown"])
    charted["scanners"] = charts.heat(found.scanners, _rows(found.scanners), sorted(_columns(found.scanners)))
    charted["having"] = charts.heat(found.having, regions, contrasts, studies_of)
    charted["regions"] = charts.stacked(found.regions, "studies", splits)
    charted["sites"] = charts.stacked(found.sites, "studies", splits)
    charted["sexes"] = charts.stacked(found.sexes, "studies", splits)
    charted["per_study"] = charts.histogram({"": list(found.series_per_study.elements())}, "series", "studies")
    if found.spacing_mm:
        charted["spacings"] = charts.spacings(found.spacing_mm)
        charted["shapes"] = charts.shapes(found.shapes)
    if found.ages:
        charted["ages"] = charts.histogram(found.ages, "age, years (90 stands for 90+)", "studies")
    if found.report_words:
        charted["words"] = charts.histogram(found.report_words, "words of findings and impression", "reports")
    if found.report_tokens:
        longest = float(found.longest_text)
        charted["tokens"] = charts.histogram({"": found.report_tokens}, "tokens", "reports", longest)
    return charted


def _totals(found: Contents) -> dict[str, int]:
    return {
        "studies": sum(s.studies for s in found.splits.values()),
        "patients": sum(s.patients for s in found.splits.values()),
        "series": sum(s.series for s in found.splits.values()),
        "bytes": sum(found.shard_bytes),
        "reports": sum(map(len, found.report_words.values())),
    }


def _rows(cross: Cross) -> list[str]:
    """Row words, the commonest first."""
    return [word for word, _ in _sums(cross, 0).most_common()]


def _columns(cross: Cross) -> list[str]:
    return [word for word, _ in _sums(cross, 1).most_common()]


def _sums(cross: Cross, axis: int) -> Counter[str]:
    sums: Counter[str] = Counter()
    for words, count in cross.items():
        sums[words[axis]] += count
    return sums


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""
