"""How many planted identifiers the scrubbing leaves, with exact intervals, and how many clinical words it takes."""

from __future__ import annotations

import csv
import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from scipy.stats import binomtest

from data_prep.ledger import QuarantineError
from data_prep.reports.people import known
from data_prep.reports.scrub import scrub
from data_prep.reports.text import clean_report

from ..test_deid import NOBODY
from .planted import CLINICAL, FRAMES, IN_HEADER, Plant, Planted, planted_reports

REPORTS = 400
ARTICLES = {"the", "of"}
TOKEN = re.compile(r"\w+", re.UNICODE)
COMMON = {word.lower() for line in CLINICAL for word in TOKEN.findall(line)} | {
    word.lower() for frames in FRAMES.values() for line in frames.seen + frames.unseen for word in TOKEN.findall(line)
}
"""Words that stand in sentences around identifiers or without any: their presence alone is no leak."""


@dataclass
class Account:
    """What became of the identifiers and of the clinical words of all reports."""

    planted: Counter[tuple[str, bool]] = field(default_factory=Counter)
    left: dict[tuple[str, bool], list[str]] = field(default_factory=lambda: defaultdict(list))
    withheld: int = 0
    words: int = 0
    lost: list[str] = field(default_factory=list)

    def rate(self, kinds: Iterator[tuple[str, bool]]) -> str:
        keys = list(kinds)
        planted, left = sum(self.planted[k] for k in keys), sum(len(self.left[k]) for k in keys)
        low, high = interval(planted - left, planted)
        return f"{planted - left} of {planted}, recall {1 - left / planted:.4f} ({low:.4f} to {high:.4f})"

    def recall(self, unseen: bool | None = None, in_header: bool | None = None) -> str:
        return self.rate(
            key for key in self.planted if unseen in (None, key[1]) and in_header in (None, key[0] in IN_HEADER)
        )


def interval(hits: int, trials: int) -> tuple[float, float]:
    """Exact (Clopper–Pearson) 95 % interval of a share."""
    exact = binomtest(hits, trials).proportion_ci(0.95, "exact")
    return float(exact.low), float(exact.high)


def survives(plant: Plant, before: list[str], after: list[str], kept: set[int]) -> bool:
    """Whether a word of the identifier is left: anywhere, or (a word that reports use) in its own place."""
    telling = [word for word in map(str.lower, TOKEN.findall(plant.text)) if len(word) > 2 or plant.kind == "age"]
    lowered = {word.lower() for word in after}
    if any(word in lowered for word in telling if word not in COMMON):
        return True
    whole = TOKEN.findall(plant.sentence)
    places = (k for k in range(len(before) - len(whole) + 1) if before[k : k + len(whole)] == whole)
    words = TOKEN.findall(plant.text)
    start = next(places) + next(k for k in range(len(whole)) if whole[k : k + len(words)] == words)
    return any(k in kept and before[k].lower() in set(telling) - ARTICLES for k in range(start, start + len(words)))


def account(reports: list[Planted]) -> Account:
    found = Account()
    for report in reports:
        try:
            clean = clean_report(report.text, [report.identity], 20_000)
        except QuarantineError:
            found.withheld += 1
            continue
        before = TOKEN.findall(report.text)
        after = TOKEN.findall("\n".join((clean.history, clean.findings, clean.impression)))
        matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
        kept = {k for block in matcher.get_matching_blocks() for k in range(block.a, block.a + block.size)}
        for plant in report.plants:
            key = (plant.kind, plant.unseen)
            found.planted[key] += 1
            if survives(plant, before, after, kept):
                found.left[key].append(plant.sentence)
        whole = "\n".join((clean.history, clean.findings, clean.impression))
        for sentence in report.clinical:
            words = TOKEN.findall(sentence)
            if sentence in whole:
                found.words += len(words)
                continue
            start = next(k for k in range(len(before)) if before[k : k + len(words)] == words)
            found.words += len(words)
            gone = [before[k] for k in range(start, start + len(words)) if k not in kept]
            found.lost += [f"{word} <- {sentence}" for word in gone]
    return found


@pytest.fixture(scope="module")
def benchmark() -> Account:
    return account(planted_reports(REPORTS, seed=2))


def table(found: Account) -> str:
    lines = [
        f"all identifiers: {found.recall()}",
        f"absent from the headers: {found.recall(in_header=False)}",
        f"in sentences set aside: {found.recall(unseen=True)}",
        f"absent from the headers, in sentences set aside: {found.recall(unseen=True, in_header=False)}",
    ]
    for kind in sorted({kind for kind, _ in found.planted}):
        lines.append(f"  {kind}: {found.rate((kind, unseen) for unseen in (False, True))}")
    low, high = interval(found.words - len(found.lost), found.words)
    kept = 1 - len(found.lost) / found.words
    lines.append(f"clinical words kept: {kept:.5f} ({low:.5f} to {high:.5f}); {len(found.lost)} of {found.words} lost")
    lines.append(f"reports withheld: {found.withheld} of {REPORTS}")
    return "\n".join(lines)


def test_planted_identifiers_go_and_clinical_words_stay(benchmark: Account) -> None:
    print("\n" + table(benchmark))
    planted = sum(benchmark.planted.values())
    foreign = sum(count for (kind, _), count in benchmark.planted.items() if kind not in IN_HEADER)
    assert planted >= 1000 and 0.4 < foreign / planted < 0.6
    left = sum(len(lines) for lines in benchmark.left.values())
    assert left / planted < 0.02
    assert len(benchmark.lost) / benchmark.words < 0.01
    assert benchmark.withheld < 0.02 * REPORTS


def test_captions_keep_their_words(mri_dev: Path) -> None:
    """Real radiology language, of patients whose names are words of it or nearly so."""
    with (mri_dev / "text" / "roco_mri_captions_validation.csv").open(encoding="utf-8", newline="") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    found = known([replace(NOBODY, people=("WHITE^MAY", "BAKER^GRACE", "MARTIN^STEFAN", "KLEIN^MARION"))])
    words, kept = 0, 0
    for caption in captions:
        before, after = TOKEN.findall(caption), TOKEN.findall(scrub(caption, found))
        words += len(before)
        blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
        kept += sum(block.size for block in blocks)
    low, high = interval(kept, words)
    print(f"\nwords of real captions kept: {kept / words:.4f} ({low:.4f} to {high:.4f}) of {words}")
    assert len(captions) == 415 and kept / words > 0.99


def test_the_account_sees_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.reports.text.scrub", lambda text, _: text)
    monkeypatch.setattr("data_prep.reports.text.survivors", lambda *_: False)
    found = account(planted_reports(40, seed=3))
    assert sum(len(lines) for lines in found.left.values()) > 0.95 * sum(found.planted.values())
    assert found.lost == []
