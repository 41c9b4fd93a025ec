"""What can be said only once all studies are there: the table of series, duplicates, and from them the splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep import duplicates, splits
from data_prep.duplicates import Duplicate, Fingerprint
from data_prep.quality.catalogue import SERIES, Catalogue
from data_prep.quality.page import Rules, render
from data_prep.task import Inputs, Plan
from fm.config.prepare import Duplicates
from fm.data.codec import decode_volume
from fm.data.index import LEFT_OUT, SampleTable, Shard

DUPLICATES = "duplicates.parquet"
PAGE = "qc.html"


@dataclass(kw_only=True, slots=True)
class Review:
    """Everything that was found out about a dataset before its index is written."""

    catalogue: Catalogue
    duplicates: list[Duplicate]
    splits: dict[str, str]
    """By study."""

    def tables(self) -> dict[str, bytes]:
        """Parquet files that go beside the shards."""
        return {SERIES: self.catalogue.table, DUPLICATES: duplicates.table(self.duplicates, self.splits)}

    def counts(self) -> dict[str, Any]:
        """What the summary says: fields of :class:`data_prep.summary.PrepareSummary`."""
        names = [flag for row in self.catalogue.rows for flag in row.flags]
        return {
            "flagged": sum(bool(row.flags) for row in self.catalogue.rows),
            "flags": {name: names.count(name) for name in sorted(set(names))},
            "duplicates": self._pairs(),
            "largest_quantisation_error": float(f"{self.catalogue.largest_error:.3g}"),
        }

    def page(self, rules: Rules, dataset_id: str) -> bytes:
        """``qc.html``."""
        return render(self.catalogue, self.duplicates, rules, dataset_id)

    def _pairs(self) -> dict[str, int]:
        """Pairs of duplicate volumes: exact, alike, of two patients, in two splits; and studies in no split."""
        pairs = self.duplicates
        return {
            "exact": sum(pair.exact for pair in pairs),
            "alike": sum(not pair.exact for pair in pairs),
            "across_patients": sum(not pair.same_patient for pair in pairs),
            "across_splits": sum(
                LEFT_OUT not in (one, other) and one != other
                for one, other in ((self.splits[p.first.study], self.splits[p.second.study]) for p in pairs)
            ),
            "left_out": sum(word == LEFT_OUT for word in self.splits.values()),
        }


def review(inputs: Inputs, plan: Plan, shards: Sequence[Shard], samples: SampleTable) -> Review:
    """Look at finished shards as a whole, those that stood before included.

    Args:
        inputs: of the run.
        plan: what it added, and to what.
        shards: all of the dataset.
        samples: all rows of the index; the new ones have no split yet.

    Raises:
        UserError: a shard that cannot be read back, or a site, day or word that the studies do not have.
    """
    config, keyring, studies = inputs.config, inputs.keyring, inputs.inventory.studies
    catalogue = Catalogue(inputs.out, shards, samples)
    pairs = duplicates.find_duplicates(catalogue.fingerprints, lambda entry: _load(catalogue, entry))
    late = splits.late_studies(((key, studies.first(uid)) for key, uid in plan.new), config.external_after)
    patients = dict(_columns(samples, "key", "patient"))
    candidates = [
        splits.Candidate(
            study=key,
            patient=patient,
            site=catalogue.sites[key],
            late=key in late,
            words=catalogue.words[key],
        )
        for key, patient in patients.items()
    ]
    standing = {} if plan.base is None else dict(_columns(plan.base.samples, "key", "split"))
    kept = {patients[key]: split for key, split in standing.items() if split != LEFT_OUT}
    shared = [(pair.first.patient, pair.second.patient) for pair in pairs if not pair.same_patient]
    by_patient = splits.assign(candidates, shared, config, keyring, kept)
    by_study = {key: by_patient[patient] for key, patient in patients.items()} | standing
    if config.duplicates is Duplicates.drop:
        left_out = {key for key, split in standing.items() if split == LEFT_OUT}
        by_study |= dict.fromkeys(duplicates.superfluous(pairs, standing.keys(), left_out), LEFT_OUT)
    return Review(catalogue=catalogue, duplicates=pairs, splits=by_study)


def review_again(url: str, shards: Sequence[Shard], samples: SampleTable, known: pa.Table | None) -> Review:
    """What is left of a review once studies were removed: splits stay, pairs that lost a side are gone.

    Args:
        url: of the dataset.
        shards: those that are left.
        samples: rows of the index that are left.
        known: table of the pairs that were found.
    """
    catalogue = Catalogue(url, shards, samples)
    pairs = [] if known is None else duplicates.from_table(known, catalogue.fingerprints)
    return Review(catalogue=catalogue, duplicates=pairs, splits=dict(_columns(samples, "key", "split")))


def _columns(samples: SampleTable, name: str, other: str) -> zip[tuple[str, str]]:
    return zip(samples.column(name).to_pylist(), samples.column(other).to_pylist(), strict=True)


def _load(catalogue: Catalogue, entry: Fingerprint) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Stored voxels and affine of a series."""
    meta = next(series for series in catalogue.study(entry.study).series if series.name == entry.series)
    stored = decode_volume(catalogue.member(entry.study, f"{entry.series}.b2")).astype(np.float32)
    return stored, np.asarray(meta.affine)
