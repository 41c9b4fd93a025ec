"""``report.html``: one file that needs nothing else, made from :class:`evals.results.Results` and a few pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evals import figures
from evals.pictures import Picture
from evals.results import SYSTEM_WORDS, Bar, GalleryResult, MatchScore, Results, Score, System, TaskResult

FOLDER = Path(__file__).parent
PICTURE_PX = 121
AUROC_LOW = 0.3


def render(results: Results, pictures: Mapping[str, Sequence[Picture]], shown: Sequence[str]) -> str:
    """The report as HTML.

    Args:
        results: every figure.
        pictures: slices by study key, for examples and for `shown`.
        shown: keys of the studies pictured in the section on studies.
    """
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        num=_num,
        signed=_signed,
        plain=_plain,
        mark=_mark,
        pairs=_pairs,
        yaml=_yaml,
        bar_value=_bar_value,
        auroc_whisker=_auroc_whisker,
        recall_whisker=_recall_whisker,
        width=lambda p: round(PICTURE_PX * p.width_mm / max(p.width_mm, p.height_mm)),
        height=lambda p: round(PICTURE_PX * p.height_mm / max(p.width_mm, p.height_mm)),
    )
    two_class = [t for t in results.tasks if len(t.classes) == 2]
    return environment.get_template("report.html.j2").render(
        r=results,
        css=Markup((FOLDER / "report.css").read_text(encoding="utf-8")),
        words=SYSTEM_WORDS,
        systems=[s for s in System if s is not System.CHANCE],
        percent=f"{results.suite['confidence'] * 100:g} %",
        summary=_summary(results.bars),
        behind=_behind(results),
        overview=Markup(figures.overview(results.tasks)) if results.tasks else "",
        rocs=[(task, Markup(figures.roc(task))) for task in two_class],
        axis_auroc=Markup(figures.scale(AUROC_LOW, 1.0, (0.3, 0.5, 0.75, 1.0))),
        axis_recall=Markup(figures.scale(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))),
        pictures=pictures,
        shown=[(key, pictures[key]) for key in shown if key in pictures],
        curves=[
            Markup(figures.curve(name, curve["step"], curve["value"]))
            for name, curve in results.training.get("curves", {}).items()
        ],
        cost=_cost(results.training.get("cost", {})),
        counts=_counts(results.dataset),
    )


def _summary(bars: Sequence[Bar]) -> str:
    judged = [b for b in bars if b.met is not None]
    if not judged:
        return "No verdict could be measured: too few studies, reports or labels. What there is stands below."
    met = sum(bool(b.met) for b in judged)
    rest = len(bars) - len(judged)
    open_words = f" {rest} could not be measured." if rest else ""
    return f"{met} of {len(judged)} bars of the suite met.{open_words}"


def _behind(results: Results) -> list[str]:
    """One line per task and gallery where a baseline is better than the encoder beyond chance variation."""
    lines = []
    for task in results.tasks:
        linear = [s for s in task.scores if s.probe == "linear"]
        for score in linear[1:]:
            gain = score.auroc_difference
            if gain is not None and gain.high is not None and gain.high < 0:
                words = f"{SYSTEM_WORDS[score.system].lower()} {score.auroc.value:.3f}"
                lines.append(f"{task.question} AUROC: {words}, this encoder {linear[0].auroc.value:.3f}.")
    for gallery in results.retrieval:
        for match in gallery.scores[1:]:
            gain = match.recall_difference
            if match.system is not System.ENCODER and gain is not None and gain.high is not None and gain.high < 0:
                words = f"{SYSTEM_WORDS[match.system].lower()} {match.recall['5'].value:.3f}"
                own = gallery.scores[0].recall["5"].value
                lines.append(f"{gallery.title}, {gallery.direction}. R@5: {words}, this encoder {own:.3f}.")
    return lines


def _pairs(task: TaskResult) -> list[tuple[Score, Score]]:
    """The linear and the kNN score of each system, in order."""
    by = {(s.system, s.probe): s for s in task.scores}
    return [(by[s, "linear"], by[s, "knn"]) for s in System if (s, "linear") in by]


def _counts(dataset: Mapping[str, Any]) -> dict[str, list[tuple[str, int, int]]]:
    """Rows (name, train, held out) by heading."""
    train, test = dataset["train"], dataset["test"]
    groups = {
        "Count": [(name.capitalize(), train[name], test[name]) for name in ("patients", "studies", "series", "reports")]
    }
    for group in ("region", "sex", "contrast", "vendor", "field strength"):
        names = sorted({*train[group], *test[group]})
        unit = "studies" if group in ("region", "sex") else "series"
        rows = [(name, train[group].get(name, 0), test[group].get(name, 0)) for name in names]
        groups[f"{group.capitalize()}, {unit}"] = rows
    return groups


COST_WORDS = {
    "cpu_hours": "Processor hours used",
    "gpu_kwh": "Energy of the GPUs, kWh",
    "package_kwh": "Energy of the processors, kWh",
    "peak_host_gb": "Peak memory of a rank, GiB",
    "peak_device_gb": "Peak GPU memory of a rank, GiB",
}


def _cost(cost: Mapping[str, Any]) -> dict[str, Any]:
    """``facts`` (words: value) of what pretraining cost, all attempts together, and ``missing`` (words: why)."""
    if not cost:
        return {}
    total = cost["total"]
    held = {f"{unit} hours held": hours for unit, hours in total["device_hours"].items()}
    known = {words: total[name] for name, words in COST_WORDS.items() if total[name] is not None}
    return {
        "facts": {"Attempts": total["attempts"], "Hours": total["wall_s"] / 3600, **held, **known},
        "missing": {COST_WORDS[name]: why for name, why in total["not_measured"].items()},
    }


def _num(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _plain(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _mark(system: System) -> Markup:
    return Markup('<svg class="mark" width="14" height="14" aria-hidden="true">{}</svg>').format(
        Markup(figures.marker(system, 7, 7))
    )


def _bar_value(bar: Bar) -> str:
    if bar.value is None:
        return ""
    return f"{bar.value:.3f} ×" if bar.threshold >= 1 else _signed(bar.value)


def _auroc_whisker(score: Score) -> Markup:
    return Markup(figures.whisker(score.auroc, score.system, AUROC_LOW, 1.0, 0.5))


def _recall_whisker(score: MatchScore, gallery: GalleryResult) -> Markup:
    chance = next(s for s in gallery.scores if s.system is System.CHANCE)
    return Markup(figures.whisker(score.recall["5"], score.system, 0.0, 1.0, chance.recall["5"].value))


def _yaml(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=110)
