"""The verdicts: what a trained encoder has to have learnt, each held against a threshold fixed beforehand."""

from __future__ import annotations

from collections.abc import Sequence

from evals.matching import IMAGE_TO_TEXT
from evals.results import SYSTEM_WORDS, Bar, GalleryResult, MatchScore, Score, Skipped, System, TaskResult
from fm.config.suite import SuiteConfig

ABOVE = "lower end of the interval > threshold"
AT_LEAST = "value ≥ threshold"


def judge(
    suite: SuiteConfig,
    tasks: Sequence[TaskResult],
    retrieval: Sequence[GalleryResult],
    skipped: Sequence[Skipped],
) -> list[Bar]:
    """One verdict per task that `suite.tasks` marks as a bar, and two on retrieval within `suite.bar_region`."""
    done = {task.name: task for task in tasks}
    reasons = {entry.name: entry.reason for entry in skipped}
    bars = []
    for name, config in suite.tasks.items():
        if not config.bar:
            continue
        question = config.question or name
        why = reasons.get(name, "not measured")
        bars.append(_task_bar(done[name]) if name in done else _open(name, question, 0.0, ABOVE, why))
    return [*bars, *_retrieval_bars(suite, retrieval, reasons)]


def _task_bar(task: TaskResult) -> Bar:
    untrained = next(s for s in task.scores if s.system is System.UNTRAINED and s.probe == "linear")
    gain = untrained.auroc_difference
    assert gain is not None
    return Bar(
        name=task.name,
        claim=f"{task.question} A linear probe answers better on this encoder than on an untrained one (AUROC gain).",
        value=gain.value,
        low=gain.low,
        high=gain.high,
        threshold=0.0,
        rule=ABOVE,
        met=None if gain.low is None else gain.low > 0,
        why="" if gain.low is not None else "too few draws could be scored",
        beside={f"AUROC, {_words(s)}": s.auroc.value for s in task.scores if s.probe == "linear"},
    )


def _retrieval_bars(suite: SuiteConfig, retrieval: Sequence[GalleryResult], reasons: dict[str, str]) -> list[Bar]:
    region, times = suite.bar_region, suite.bar_times_chance
    gallery = region if suite.bar_normals else f"{region}_without_normals"
    where = f"the {region}" if suite.bar_normals else f"the {region}, normals left out"
    names = (f"retrieval_{gallery}_times_chance", f"retrieval_{gallery}_over_headers")
    claims = (
        f"Shown a scan of {where}, it puts a fitting report among the first five {times:g} × as often as chance "
        "(R@5 over chance).",
        f"It does so more often than a matcher that sees only the scan's headers (gain in R@5 within {where}).",
    )
    found = [g for g in retrieval if g.gallery == gallery and g.direction == IMAGE_TO_TEXT and not g.small]
    if not found:
        why = reasons.get(f"retrieval_{gallery}", f"no gallery of at least {suite.min_gallery} reports in this region")
        return [_open(names[0], claims[0], times, AT_LEAST, why), _open(names[1], claims[1], 0.0, ABOVE, why)]
    scores = found[0].scores
    mine, luck = _of(scores, System.ENCODER, mapped=False), _of(scores, System.CHANCE, mapped=False)
    assert mine is not None and luck is not None
    base, hit = luck.recall["5"].value, mine.recall["5"]
    ratio = Bar(
        name=names[0],
        claim=claims[0],
        value=hit.value / base,
        low=None if hit.low is None else hit.low / base,
        high=None if hit.high is None else hit.high / base,
        threshold=times,
        rule=AT_LEAST,
        met=hit.value / base >= times,
        beside=_beside(scores),
    )
    headers = _of(scores, System.HEADER, mapped=True)
    gain = headers.recall_difference if headers is not None else None
    if gain is None or gain.low is None:
        return [ratio, _open(names[1], claims[1], 0.0, ABOVE, "too few training reports for a header-only matcher")]
    over = Bar(
        name=names[1],
        claim=claims[1],
        value=gain.value,
        low=gain.low,
        high=gain.high,
        threshold=0.0,
        rule=ABOVE,
        met=gain.low > 0,
        beside=_beside(scores),
    )
    return [ratio, over]


def _beside(scores: Sequence[MatchScore]) -> dict[str, float]:
    return {f"R@5, {_words(s)}": s.recall["5"].value for s in scores}


def _words(score: Score | MatchScore) -> str:
    mapped = isinstance(score, MatchScore) and score.through_map
    return SYSTEM_WORDS[score.system].lower() + (" (map)" if mapped else "")


def _of(scores: Sequence[MatchScore], system: System, *, mapped: bool) -> MatchScore | None:
    return next((s for s in scores if s.system is system and s.through_map is mapped), None)


def _open(name: str, claim: str, threshold: float, rule: str, why: str) -> Bar:
    return Bar(
        name=name, claim=claim, value=None, low=None, high=None, threshold=threshold, rule=rule, met=None, why=why
    )
