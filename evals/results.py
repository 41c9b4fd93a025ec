"""What an evaluation found: every figure of the report, as types and as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from fm.probes.bootstrap import Interval

FORMAT_VERSION = 1


class System(StrEnum):
    """Whose features a figure belongs to; the order is the order of the report."""

    ENCODER = "encoder"
    UNTRAINED = "untrained"
    INTENSITY = "intensity"
    HEADER = "header"
    CHANCE = "chance"


SYSTEM_WORDS = {
    System.ENCODER: "This encoder",
    System.UNTRAINED: "Untrained encoder",
    System.INTENSITY: "Pixel statistics",
    System.HEADER: "Headers only",
    System.CHANCE: "Chance",
}


@dataclass(kw_only=True, slots=True)
class Score:
    """One kind of features through one probe on one task."""

    system: System
    probe: str
    """`linear`, `knn` or `zero-shot`."""
    setting: float | None
    """The chosen inverse penalty or number of neighbours."""
    auroc: Interval
    """Area under the ROC curve; with more than two classes the mean over classes, each against the rest."""
    balanced_accuracy: Interval
    auroc_difference: Interval | None = None
    """AUROC of this encoder minus this one, paired over the same draws; None for the encoder itself. Of `zero-shot` the
    linear probe on the same encoder minus this."""
    roc: list[tuple[float, float]] | None = None
    """Corners of the ROC curve of a two-class task."""


@dataclass(kw_only=True, slots=True)
class TaskResult:
    """All scores of one task."""

    name: str
    question: str
    level: str
    region: str | None
    classes: list[str]
    bar: bool
    train: dict[str, int]
    """Rows of each class that the probe was fitted on."""
    test: dict[str, int]
    """Rows of each class that were scored."""
    test_patients: int
    note: str
    scores: list[Score]


@dataclass(kw_only=True, slots=True)
class Skipped:
    """Something that was not measured, and why."""

    name: str
    question: str
    reason: str


@dataclass(kw_only=True, slots=True)
class MatchScore:
    """One system on one gallery in one direction."""

    system: System
    through_map: bool
    """False for the encoder's own shared space; True for a ridge map learnt on the training studies."""
    recall: dict[str, Interval]
    """R@1, R@5, R@10: share of queries with a relevant item that high."""
    median_rank: Interval
    mrr: Interval
    recall_difference: Interval | None = None
    """R@5 of the encoder's own space minus this one's, paired over the same draws."""


@dataclass(kw_only=True, slots=True)
class GalleryResult:
    """Retrieval within one gallery, one direction."""

    gallery: str
    title: str
    direction: str
    size: int
    distinct: int
    """Different findings in the gallery."""
    small: bool
    """Fewer items than `suite.min_gallery`: read with care."""
    region: str | None
    normals: bool
    """Whether normals are in the gallery."""
    scores: list[MatchScore]


@dataclass(kw_only=True, slots=True)
class Match:
    """One retrieved text of an example."""

    key: str
    text: str
    hit: bool


@dataclass(kw_only=True, slots=True)
class Example:
    """One query study and its best texts."""

    key: str
    region: str
    gallery_size: int
    rank: int
    """Of the first relevant text, ties counted against it."""
    relevant: int
    own_text: str
    matches: list[Match]


@dataclass(kw_only=True, slots=True)
class Bar:
    """One verdict: did the encoder learn this?"""

    name: str
    claim: str
    """In plain words."""
    value: float | None
    low: float | None
    high: float | None
    threshold: float
    rule: str
    """What has to hold against the threshold: `low > threshold` or `value >= threshold`."""
    met: bool | None
    """None where it could not be measured; `why` says why."""
    why: str = ""
    beside: dict[str, float] = field(default_factory=dict)
    """The same measure of each system: AUROC of the linear probe, or R@5."""


@dataclass(kw_only=True, slots=True)
class Results:
    """Everything `results.json` holds."""

    created_utc: str
    commit: str
    versions: dict[str, str]
    encoder: dict[str, Any]
    dataset: dict[str, Any]
    suite: dict[str, Any]
    bars: list[Bar]
    tasks: list[TaskResult]
    retrieval: list[GalleryResult]
    examples: list[Example]
    skipped: list[Skipped]
    training: dict[str, Any]
    seconds: dict[str, float]
    run: dict[str, Any] = field(default_factory=dict)
    """The run's own configuration, as composed."""
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Strict JSON: a number that is not finite is null."""
        return json.dumps(_plain(self), indent=1, ensure_ascii=False, allow_nan=False)

    def write(self, path: Path) -> None:
        """Write the JSON in one step."""
        partial = path.with_name(path.name + ".tmp")
        partial.write_text(self.to_json() + "\n", encoding="utf-8")
        partial.replace(path)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, StrEnum):
        return value.value
    return value
