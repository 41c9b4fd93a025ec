"""``qc.html``: one self-contained page from which a person can judge the checks and the sites in a minute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import jinja2
import numpy as np

from data_prep.duplicates import Duplicate
from data_prep.ledger import Entry
from data_prep.quality.catalogue import CHECKS, Catalogue, Row
from data_prep.quality.checks import BELOW
from data_prep.quality.pictures import stored_thumbnail
from fm.config.quality import Action, LimitsConfig
from fm.config.registry import keys
from fm.data.sample import StudyMeta

PER_END = 4
"""Pictures of the worst series of a check, and as many of those nearest to its limit."""
PER_SITE = 6
MAX_SITES = 12
"""Sites shown, the largest first."""
PAIRS = 8
_HERE = Path(__file__).parent


@dataclass(kw_only=True, slots=True)
class Shot:
    """One thumbnail with its caption."""

    uri: str
    title: str
    note: str


@dataclass(kw_only=True, slots=True)
class CheckView:
    """One check on the page."""

    name: str
    words: str
    limit: float
    below: bool
    action: str
    judged: int
    """Series that it could judge."""
    flagged: int
    refused: int
    """Files that it quarantined."""
    median: float | None
    sites: list[tuple[int, float]]
    """Flagged series and their share, by site as shown."""
    worst: list[Shot] = field(default_factory=list)
    nearest: list[Shot] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class SiteView:
    """One site on the page."""

    name: str
    scanners: list[str]
    series: int
    studies: int
    flagged: int
    shots: list[Shot]


@dataclass(kw_only=True, slots=True)
class Rules:
    """What the series were judged by, and what was refused for it."""

    entries: Sequence[Entry]
    """The quarantine."""
    pictures: Mapping[str, list[str]]
    """Of some of it, by reason (:attr:`data_prep.ledger.Tally.pictures`)."""
    limits: Mapping[str, float]
    """By check."""
    actions: Mapping[str, str]
    """By check, those other than flag."""


def render(catalogue: Catalogue, pairs: Sequence[Duplicate], rules: Rules, dataset_id: str) -> bytes:
    """The page; equal datasets give equal bytes. It shows stored voxels and keyed ids, nothing else.

    Args:
        catalogue: every series.
        pairs: duplicates.
        rules: limits and actions, and what was quarantined.
        dataset_id: of the manifest.
    """
    pictures = _Pictures(catalogue)
    by_site: dict[str, list[Row]] = {}
    for row in catalogue.rows:
        by_site.setdefault(row.site, []).append(row)
    shown = sorted(by_site, key=lambda site: (-len(by_site[site]), site))[:MAX_SITES]
    refused: Counter[str] = Counter()
    for entry in rules.entries:
        refused[entry.reason.value] += entry.files
    sites = [by_site[site] for site in shown]
    checks = [_check(name, catalogue.rows, sites, rules, pictures) for name in CHECKS]
    for check in checks:
        check.refused = refused.pop(check.name, 0)
        check.quarantined = rules.pictures.get(check.name, [])
    checks.sort(key=lambda check: (-check.flagged - check.refused, check.name))
    twins = [_pair(pair, pictures) for pair in sorted(pairs, key=lambda pair: (pair.same_patient, pair.exact))[:PAIRS]]
    page = (
        _environment()
        .get_template("page.html.j2")
        .render(
            css=(_HERE / "page.css").read_text("utf-8"),
            dataset_id=dataset_id,
            series=len(catalogue.rows),
            studies=len(catalogue.samples),
            flagged=sum(bool(row.flags) for row in catalogue.rows),
            largest_error=catalogue.largest_error,
            checks=checks,
            sites=[_site(site, by_site[site], pictures) for site in shown],
            more_sites=len(by_site) - len(shown),
            refused=sorted((+refused).items(), key=lambda item: (-item[1], item[0])),
            pairs=twins,
            more_pairs=len(pairs) - len(twins),
        )
    )
    return page.encode()


class _Pictures:
    """Thumbnails of stored series, each made once."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self._made: dict[tuple[str, str], str] = {}
        self._last: StudyMeta | None = None

    def of(self, study: str, series: str) -> str:
        """The data address of a series' thumbnail."""
        if (study, series) not in self._made:
            if self._last is None or self._last.key != study:
                self._last = self.catalogue.study(study)
            meta = next(entry for entry in self._last.series if entry.name == series)
            self._made[study, series] = stored_thumbnail(self.catalogue.member(study, f"{series}.b2"), meta)
        return self._made[study, series]

    def shot(self, row: Row, title: str) -> Shot:
        """A thumbnail with its caption."""
        return Shot(uri=self.of(row.study, row.series), title=title, note=f"{row.kind} · {row.study[:8]} {row.series}")


def _check(
    name: str, rows: Sequence[Row], sites: Sequence[Sequence[Row]], rules: Rules, pictures: _Pictures
) -> CheckView:
    judged = [row for row in rows if name in row.quality]
    sign = 1 if name in BELOW else -1
    flagged = sorted(
        (row for row in judged if name in row.flags), key=lambda row: (sign * row.quality[name], row.study, row.series)
    )
    worst, rest = flagged[:PER_END], flagged[PER_END:]
    counts = [sum(name in row.flags for row in site) for site in sites]
    return CheckView(
        name=name,
        words=keys(LimitsConfig)[name].doc,
        limit=rules.limits[name],
        below=name in BELOW,
        action=rules.actions.get(name, Action.flag.value),
        judged=len(judged),
        flagged=len(flagged),
        refused=0,
        median=float(np.median([row.quality[name] for row in judged])) if judged else None,
        sites=[(count, count / len(site)) for count, site in zip(counts, sites, strict=True)],
        worst=[pictures.shot(row, f"{row.quality[name]:.3g}") for row in worst],
        nearest=[pictures.shot(row, f"{row.quality[name]:.3g}") for row in rest[-PER_END:]],
    )


def _site(site: str, rows: Sequence[Row], pictures: _Pictures) -> SiteView:
    scanners = Counter(row.scanner for row in rows)
    # study keys are keyed hashes: their order is a fair draw; first one series of each kind, as a protocol shows them
    ordered = sorted(rows, key=lambda row: (row.study, row.series))
    kinds = list({row.kind: row for row in reversed(ordered)}.values())
    chosen = (kinds + [row for row in ordered if row not in kinds])[:PER_SITE]
    return SiteView(
        name=f"site {site[:6]}" if site else "no institution named",
        scanners=[word for word, _ in scanners.most_common(3)],
        series=len(rows),
        studies=len({row.study for row in rows}),
        flagged=sum(bool(row.flags) for row in rows),
        shots=[pictures.shot(row, ", ".join(row.flags) or "no flag") for row in chosen],
    )


def _pair(pair: Duplicate, pictures: _Pictures) -> tuple[str, list[Shot]]:
    words = "exact copy" if pair.exact else f"correlation {pair.correlation:.2f}"
    whose = "one patient" if pair.same_patient else "two patients"
    shots = [
        Shot(uri=pictures.of(entry.study, entry.series), title=entry.series, note=entry.study[:8])
        for entry in (pair.first, pair.second)
    ]
    return f"{words}, {whose}", shots


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
