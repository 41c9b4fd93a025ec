"""The hand-check sheet: a person reads reports and says what they state; precision and recall of the labeller follow.

A CSV with a row per report and finding; ``truth`` is filled in with ``y`` (the report states it), ``n`` (it denies it),
``-`` (it does not mention it, or leaves it open), and stays empty where nobody has looked.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import binomtest

from data_prep.keys import Keyring
from data_prep.reports.findings import PREFIX, findings_of, read_findings
from fm.config.errors import UserError
from fm.data.index import Manifest

COLUMNS = ("study", "finding", "labeller", "truth", "report")
_FILLED = {"y": 1, "1": 1, "yes": 1, "n": 0, "0": 0, "no": 0, "-": None}


@dataclass(frozen=True, slots=True)
class Rate:
    """A share with its exact (Clopper–Pearson) 95 % interval."""

    hits: int
    of: int

    def __str__(self) -> str:
        """``0.950 (0.90 to 0.98), 95 of 100``; a dash where there is nothing to count."""
        if not self.of:
            return "– (0 of 0)"
        interval = binomtest(self.hits, self.of).proportion_ci(method="exact")
        return f"{self.hits / self.of:.3f} ({interval.low:.3f} to {interval.high:.3f}), {self.hits} of {self.of}"


@dataclass(frozen=True, slots=True)
class Score:
    """How a labeller did on one finding."""

    finding: str
    precision: Rate
    """Of those labelled as stated, the share that are."""
    recall: Rate
    """Of those stated, the share that are labelled so."""
    denied_precision: Rate
    """Of those labelled as denied, the share that are."""


def write_sheet(url: str, path: Path, studies: int, findings_file: str, seed: int) -> tuple[int, int]:
    """Write a sheet of some studies' reports, drawn by a hash of their keys; returns studies and rows.

    Args:
        url: shards prepared with a labeller.
        path: CSV to write.
        studies: how many reports to draw.
        findings_file: as in the preparation; '' for the shipped findings.
        seed: another number draws other studies.

    Raises:
        UserError: no report or no label of a labeller in the shards, or the sheet exists: it may be filled in.
    """
    if path.exists():
        raise UserError(f"out={path} exists, and may be filled in: name a new file")
    manifest = Manifest.open(url)
    draw = Keyring(str(seed).encode())
    rows: list[dict[str, str]] = []
    drawn = 0
    labelled = False
    for key in sorted(manifest.keys, key=lambda key: draw.digest("sheet", key)):
        if drawn == studies:
            break
        study = manifest.study(key)
        if study.report is None:
            continue
        drawn += 1
        labelled |= any(name.startswith(PREFIX) for name in study.labels)
        for number, finding in enumerate(findings_of(read_findings(findings_file), study.region)):
            label = study.labels.get(PREFIX + finding.name)
            said = {1: "y", 0: "n"}.get(int(label), "") if isinstance(label, int | float) else "-"
            text = study.report.diagnostic if number == 0 else ""
            rows.append(dict(zip(COLUMNS, (key, finding.name, said, "", text), strict=True)))
    if not rows or not labelled:
        raise UserError(f"url={url}: holds no reports with labels of a labeller; prepare with prepare.labeller=rules")
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return drawn, len(rows)


def read_sheet(path: Path) -> list[tuple[str, int | None, int | None]]:
    """(finding, label, truth) of the rows that are filled in.

    Raises:
        UserError: no such file, other columns, a truth that is none of y, n and -, or nothing filled in.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise UserError(f"sheet={path} cannot be read ({type(err).__name__}); give a CSV file in UTF-8") from None
    found: list[tuple[str, int | None, int | None]] = []
    for number, row in enumerate(rows, 1):
        if any(row.get(name) is None for name in COLUMNS[:4]):
            raise UserError(f"sheet={path}, row {number}: needs the columns {', '.join(COLUMNS[:4])}")
        label, truth = (row[name].strip().lower() for name in ("labeller", "truth"))
        if truth and truth not in _FILLED:
            raise UserError(f"sheet={path}, row {number}: truth={truth[:10]} is none of y, n and -")
        if truth:
            found.append((row["finding"], _FILLED.get(label), _FILLED[truth]))
    if not found:
        raise UserError(f"sheet={path}: no truth is filled in; write y, n or - where the column is empty")
    return found


def score(rows: Iterable[tuple[str, int | None, int | None]]) -> list[Score]:
    """Precision and recall by finding, and over all of them, from (finding, label, truth)."""
    counts: dict[str, Counter[tuple[int | None, int | None]]] = {}
    for finding, label, truth in rows:
        counts.setdefault(finding, Counter())[label, truth] += 1
    total: Counter[tuple[int | None, int | None]] = Counter()
    for count in counts.values():
        total.update(count)
    return [_score(name, count) for name, count in (*sorted(counts.items()), ("all", total))]


def table(scores: Sequence[Score]) -> str:
    """The scores as a Markdown table."""
    lines = ["| finding | precision of stated | recall of stated | precision of denied |", "| --- | --- | --- | --- |"]
    lines += [f"| {s.finding} | {s.precision} | {s.recall} | {s.denied_precision} |" for s in scores]
    return "\n".join(lines)


def _score(name: str, count: Counter[tuple[int | None, int | None]]) -> Score:
    def of(label: int | None = 9, truth: int | None = 9) -> int:
        return sum(n for (one, two), n in count.items() if label in (9, one) and truth in (9, two))

    return Score(
        finding=name,
        precision=Rate(of(1, 1), of(label=1)),
        recall=Rate(of(1, 1), of(truth=1)),
        denied_precision=Rate(of(0, 0), of(label=0)),
    )
