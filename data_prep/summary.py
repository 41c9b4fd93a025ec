"""The account of a preparation: for people, and as ``prepare.json`` in the dataset."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from data_prep.ledger import Entry

_LOCAL = ("out", "link_table")
"""Fields that name this machine's folders: they are not written into the dataset."""


@dataclass(kw_only=True, slots=True)
class PrepareSummary:
    """What a preparation did; ``files == used + sum(excluded) + sum(quarantined)`` holds."""

    dataset_id: str
    out: str
    files: int
    used: int
    excluded: dict[str, int]
    """Files left out on purpose, by rule."""
    quarantined: dict[str, int]
    """Files that could not be used, by reason; listed in ``quarantine.jsonl``."""
    studies: int
    patients: int
    series: int
    """Series of the input of which something was stored."""
    volumes: int
    """3D volumes converted."""
    members: int
    """Series members stored: `volumes` less those averaged (prepare.volumes=mean) or refused."""
    missing_slices: int
    """Slices marked invalid, over all volumes."""
    shards: int
    splits: dict[str, int]
    """Studies by split."""
    contrasts: dict[str, int]
    """Stored series by contrast."""
    flagged: int
    """Stored series that failed a quality check."""
    flags: dict[str, int]
    """Stored series by the check that they failed."""
    duplicates: dict[str, int]
    """Pairs of series that hold one volume: exact, alike, across patients and splits; and studies in no split."""
    largest_quantisation_error: float
    """Over all series, as a share of the range between the 1st and 99th percentile."""
    limits: dict[str, float]
    """Limits that series were held against, by check."""
    actions: dict[str, str]
    """What happened to a series beyond a limit, by check, where it was not only flagged."""
    reports: int
    """Studies with a report."""
    refused_reports: dict[str, int]
    """Report rows that were not used, by reason."""
    labelled: int
    """Studies with a row in the labels file."""
    refused_labels: int
    """Label cells that were neither numbers nor short words."""
    unlinked_labels: int
    """Label rows whose study is not in the input."""
    unknown_reports: list[int] = field(default_factory=list)
    """Row numbers of reports whose study is not in the input."""
    placeholder_patients: int = 0
    """Studies whose PatientID names nobody: each counts as a patient of its own."""
    masks: int = 0
    """Label maps stored."""
    refused_masks: dict[str, int] = field(default_factory=dict)
    """Segmentations that were not used, by reason."""
    linked_patients: int = 0
    """Patients whom the link file joined from several numbers."""
    changed_studies: int = 0
    """Studies that stood already and come from other files, report or labels now: they stay as they were."""
    link_table: str = ""
    """The restricted table from keyed ids to paths and UIDs."""

    def __str__(self) -> str:
        """A few lines for people."""
        refused = _counts(self.refused_reports)
        flagged = [f"{self.linked_patients} patients joined by the link file"] if self.linked_patients else []
        if self.placeholder_patients:
            flagged.append(
                f"{self.placeholder_patients} studies without a patient number (empty, *** and the like): each counts "
                "as a patient of its own"
            )
        if self.changed_studies:
            flagged.append(f"{self.changed_studies} studies changed since they were prepared: they stay as they were")
        return "\n".join(
            (
                f"{self.files} files: {self.used} used, {_total(self.excluded)} excluded, "
                f"{_total(self.quarantined)} quarantined",
                f"{self.studies} studies of {self.patients} patients: {self.series} series, {self.volumes} volumes -> "
                f"{self.members} members in {self.shards} shards; {self.missing_slices} missing slices marked",
                *flagged,
                f"contrasts: {_counts(self.contrasts)}",
                f"{self.reports} reports" + (f"; not used: {refused}" if refused else ""),
                *self._masks(),
                *self._quality(),
                f"splits: {_counts(self.splits)}",
                f"dataset {self.dataset_id} in {self.out}",
                f"ids are explained in {self.link_table}: keep it, and the key beside it, restricted",
            )
        )

    def _quality(self) -> list[str]:
        """Lines about quality and duplicates."""
        failed = f": {_counts(self.flags)}" if self.flags else ""
        error = f"largest quantisation error {100 * self.largest_quantisation_error:.2g} % of a series' range"
        lines = [f"quality: {self.flagged} of {self.members} series flagged{failed}; {error}"]
        found = {name: number for name, number in self.duplicates.items() if number}
        if found:
            words = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in found.items())
            lines.append(f"duplicate volumes: {words}; see duplicates.parquet")
        return [*lines, f"look at {self.out}/qc.html"]

    def _masks(self) -> list[str]:
        refused = _counts(self.refused_masks)
        line = f"{self.masks} masks" + (f"; not used: {refused}" if refused else "")
        return [line] if self.masks or refused else []

    def to_json(self) -> bytes:
        """The content of ``prepare.json``: everything but this machine's paths."""
        plain = {name: value for name, value in asdict(self).items() if name not in _LOCAL}
        return (json.dumps(plain, indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, payload: bytes, out: str, link_table: str) -> PrepareSummary:
        """Restore :meth:`to_json`."""
        return cls(**json.loads(payload), out=out, link_table=link_table)


def count_reasons(entries: Sequence[Entry], kind: str | None = None) -> dict[str, int]:
    """Entries of a kind by reason, or (None) the files behind all entries by reason."""
    counts: Counter[str] = Counter()
    for entry in entries:
        if kind is None:
            counts[entry.reason.value] += entry.files
        elif entry.kind == kind:
            counts[entry.reason.value] += 1
    return dict(sorted((+counts).items()))


def _total(counts: dict[str, int]) -> str:
    listed = _counts(counts)
    return f"{sum(counts.values())}" + (f" ({listed})" if listed else "")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {word}" for word, number in sorted(counts.items()))
