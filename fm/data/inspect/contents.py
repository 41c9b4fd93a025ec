"""What a dataset holds, counted: one pass over the studies' JSON members, no voxel is touched."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerFast

from fm.data.index import DatasetError, Manifest
from fm.data.sample import SampleError, SeriesMeta, StudyMeta
from fm.data.sweep import read_studies
from fm.data.text import truncated

UNKNOWN = "unknown"
QUARANTINE = "quarantine.jsonl"
PREPARED = "prepare.json"
_GROUP = 256
_MOST_VALUES = 12
"""Different values of a label beyond which only its range is told."""

Progress = Callable[[int, int], None]
Cross = Counter[tuple[str, str]]
"""Counts by row and column."""


@dataclass(kw_only=True, slots=True)
class SplitCounts:
    """Sizes of one split, from the index."""

    studies: int = 0
    patients: int = 0
    series: int = 0
    labels: int = 0
    """Label maps."""
    bytes: int = 0


@dataclass(kw_only=True, slots=True)
class Contents:
    """Counts of a dataset. Spacings in mm, ages in years; `read` studies of `studies` were looked into."""

    url: str
    dataset_id: str
    versions: dict[str, str]
    shard_bytes: list[int]
    splits: dict[str, SplitCounts]
    read: int = 0
    studies: int = 0
    sites: Cross = field(default_factory=Counter)
    """Studies by site and split."""
    regions: Cross = field(default_factory=Counter)
    """Studies by region and split."""
    sexes: Cross = field(default_factory=Counter)
    ages: dict[str, list[float]] = field(default_factory=dict)
    """By split; above 89 as 90."""
    ages_unknown: int = 0
    scanners: Cross = field(default_factory=Counter)
    """Series by vendor and field strength."""
    planes: Cross = field(default_factory=Counter)
    """Series by contrast and plane."""
    roles: Counter[str] = field(default_factory=Counter)
    agents: Cross = field(default_factory=Counter)
    """Series by contrast and contrast agent."""
    spacing_mm: list[tuple[float, float, str]] = field(default_factory=list)
    """(slice, in-plane, contrast) of each series."""
    shapes: list[tuple[int, int, int]] = field(default_factory=list)
    missing_slices: Counter[int] = field(default_factory=Counter)
    """Series by how many of their slices are missing."""
    series_per_study: Counter[int] = field(default_factory=Counter)
    sets: Counter[str] = field(default_factory=Counter)
    """Studies by which contrasts they have."""
    having: Cross = field(default_factory=Counter)
    """Studies by region and contrast that they have at least once."""
    labels: dict[str, Counter[str]] = field(default_factory=dict)
    """Studies by value; a missing label is not counted."""
    label_splits: dict[str, Cross] = field(default_factory=dict)
    report_words: dict[str, list[int]] = field(default_factory=dict)
    """Words of each diagnostic text, by split."""
    report_tokens: list[int] = field(default_factory=list)
    reports_cut: int = 0
    tokens_cut: int = 0
    longest_text: int = 0
    """Tokens that the text encoder reads at most; 0 where tokens were not counted."""
    quarantine: Cross = field(default_factory=Counter)
    """Items by reason and kind."""
    prepared: dict[str, Any] = field(default_factory=dict)
    """What fm prepare says it did; empty for other datasets."""
    unreadable: list[str] = field(default_factory=list)


def read_contents(
    manifest: Manifest,
    site_label: str,
    most_studies: int = 0,
    tokenizer: PreTrainedTokenizerFast | None = None,
    progress: Progress | None = None,
) -> Contents:
    """Count what a dataset holds.

    Args:
        manifest: the dataset.
        site_label: label that names a study's site.
        most_studies: studies to look into, spread evenly; 0 takes all.
        tokenizer: counts the tokens of reports, and those that it cuts.
        progress: told how many studies of how many are done.

    Raises:
        DatasetError: the store is out of reach. A study that cannot be read is named in the result.
    """
    found = Contents(
        url=manifest.url,
        dataset_id=manifest.dataset_id,
        versions=dict(manifest.versions),
        shard_bytes=[shard.bytes for shard in manifest.shards],
        splits=_sizes(manifest),
        studies=len(manifest),
        longest_text=0 if tokenizer is None else int(tokenizer.model_max_length),
    )
    rows = np.arange(len(manifest))
    if 0 < most_studies < len(rows):
        rows = np.unique(np.linspace(0, len(rows) - 1, most_studies).round().astype(int))
    keys, splits = manifest.samples.column("key"), manifest.samples.column("split")
    for first in range(0, len(rows), _GROUP):
        group = [(str(keys[int(row)].as_py()), str(splits[int(row)].as_py())) for row in rows[first : first + _GROUP]]
        for split, study in _readable(manifest, group, found):
            _count_study(found, study, split, site_label)
            _count_report(found, study, split, tokenizer)
        if progress is not None:
            progress(min(first + _GROUP, len(rows)), len(rows))
    _count_quarantine(found, manifest)
    return found


def _sizes(manifest: Manifest) -> dict[str, SplitCounts]:
    """By split, in columns: a million studies take seconds."""
    samples = manifest.samples
    codes, words = samples.codes("split")
    per_row = samples.members_per_row
    owner = np.repeat(codes, per_row)
    names = samples.members.field("name")
    names = names if pa.types.is_dictionary(names.type) else names.dictionary_encode()
    kinds = [(word.endswith(".seg.b2"), word.endswith(".b2")) for word in names.dictionary.to_pylist()]
    masks, arrays = np.array(kinds, dtype=bool).reshape(-1, 2)[np.asarray(names.indices)].T
    volumes = arrays & ~masks
    lengths = np.asarray(samples.members.field("length"), dtype=np.int64)
    patients = np.asarray(samples.column("patient").dictionary_encode().indices)
    return {
        word: SplitCounts(
            studies=int((codes == code).sum()),
            patients=len(np.unique(patients[codes == code])),
            series=int(volumes[owner == code].sum()),
            labels=int(masks[owner == code].sum()),
            bytes=int(lengths[owner == code].sum()),
        )
        for code, word in sorted(enumerate(words), key=lambda pair: pair[1])
    }


def _readable(manifest: Manifest, group: Sequence[tuple[str, str]], found: Contents) -> list[tuple[str, StudyMeta]]:
    """(split, study) of those that can be read; one bad study does not hide its neighbours."""
    try:
        studies = read_studies(manifest, [key for key, _ in group])
        return [(split, study) for (_, split), study in zip(group, studies, strict=True)]
    except (DatasetError, SampleError) as err:
        if len(group) == 1:
            found.unreadable.append(f"study {group[0][0]}: {err}")
            return []
    middle = len(group) // 2
    return _readable(manifest, group[:middle], found) + _readable(manifest, group[middle:], found)


def _count_study(found: Contents, study: StudyMeta, split: str, site_label: str) -> None:
    found.read += 1
    found.sites[str(study.labels.get(site_label, UNKNOWN)), split] += 1
    found.regions[study.region, split] += 1
    found.sexes[study.sex or UNKNOWN, split] += 1
    if study.age is None:
        found.ages_unknown += 1
    else:
        found.ages.setdefault(split, []).append(90.0 if isinstance(study.age, str) else float(study.age))
    for name, value in study.labels.items():
        found.labels.setdefault(name, Counter())[_word(value)] += 1
        found.label_splits.setdefault(name, Counter())[_word(value), split] += 1
    found.series_per_study[len(study.series)] += 1
    contrasts = sorted({series.contrast.value for series in study.series})
    found.sets[" + ".join(contrasts) or "none"] += 1
    for contrast in contrasts:
        found.having[study.region, contrast] += 1
    for series in study.series:
        _count_series(found, series)


def _count_series(found: Contents, series: SeriesMeta) -> None:
    field_strength = UNKNOWN if series.field_strength_t is None else f"{series.field_strength_t:.3g} T"
    found.scanners[series.vendor or UNKNOWN, field_strength] += 1
    found.planes[series.contrast.value, series.plane.value] += 1
    found.agents[series.contrast.value, series.agent.value] += 1
    found.roles[series.role.value] += 1
    d, h, w = series.spacing_mm
    found.spacing_mm.append((d, (h * w) ** 0.5, series.contrast.value))
    found.shapes.append(series.shape)
    found.missing_slices[sum(not valid for valid in series.slice_valid)] += 1


def _count_report(found: Contents, study: StudyMeta, split: str, tokenizer: PreTrainedTokenizerFast | None) -> None:
    text = study.report.diagnostic if study.report is not None else ""
    if not text:
        return
    found.report_words.setdefault(split, []).append(len(text.split()))
    if tokenizer is not None:
        (ids,), (cut,) = truncated([text], tokenizer)
        found.report_tokens.append(len(ids) + cut)
        found.reports_cut += cut > 0
        found.tokens_cut += cut


def _count_quarantine(found: Contents, manifest: Manifest) -> None:
    """What fm prepare left beside the shards, where it made them."""
    present = manifest.store.sizes()
    if QUARANTINE in present:
        for line in manifest.store.whole(QUARANTINE).decode("utf-8", "replace").splitlines():
            entry = _object(line)
            found.quarantine[str(entry.get("reason", UNKNOWN)), str(entry.get("kind", UNKNOWN))] += 1
    if PREPARED in present:
        found.prepared = _object(manifest.store.whole(PREPARED).decode("utf-8", "replace"))


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _word(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def label_rows(found: Contents) -> list[tuple[str, str, int, list[tuple[str, int]]]]:
    """(label, what its values are, studies that have it, counts by value) in alphabetical order; a label of many values
    is cut into five ranges where they are numbers, and its commonest words are told where they are not.
    """
    rows = []
    for name, counts in sorted(found.labels.items()):
        total = counts.total()
        if len(counts) <= _MOST_VALUES:
            rows.append((name, "values", total, sorted(counts.items(), key=lambda item: _order(item[0]))))
        elif all(_number(value) is not None for value in counts):
            numbers = np.repeat([float(value) for value in counts], list(counts.values()))
            edges = np.linspace(numbers.min(), numbers.max(), 6)
            heights, _ = np.histogram(numbers, edges)
            ranges = [f"{a:.3g} to {b:.3g}" for a, b in pairwise(edges)]
            rows.append((name, "ranges", total, list(zip(ranges, map(int, heights), strict=True))))
        else:
            rows.append((name, f"commonest of {len(counts)} words", total, counts.most_common(_MOST_VALUES)))
    return rows


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _order(word: str) -> tuple[float, str]:
    number = _number(word)
    return (float("inf") if number is None else number, word)
