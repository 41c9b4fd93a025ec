"""What can be said only once all studies are there: the table of series, duplicates, and from them the splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from data_prep import duplicates, splits
from data_prep.duplicates import Duplicate, Fingerprint
from data_prep.headers import Header
from data_prep.keys import Keyring
from data_prep.ledger import Tally
from data_prep.quality.catalogue import SERIES, Catalogue
from data_prep.quality.page import render
from fm.config.prepare import Duplicates, PrepareConfig
from fm.data.codec import decode_volume
from fm.data.index import LEFT_OUT, Sample, Shard

DUPLICATES = "duplicates.parquet"
PAGE = "qc.html"


@dataclass(kw_only=True, slots=True)
class Review:
    """Everything that was found out about a dataset before its index is written."""

    catalogue: Catalogue
    duplicates: list[Duplicate]
    splits: dict[str, str]
    """By study."""
    tables: dict[str, bytes] = field(default_factory=dict)
    """Parquet files that go beside the shards."""

    def flags(self) -> dict[str, int]:
        """Series by the check that they failed."""
        names = [flag for row in self.catalogue.rows for flag in row.flags]
        return {name: names.count(name) for name in sorted(set(names))}

    def counts(self) -> dict[str, int]:
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

    def page(self, tally: Tally, config: PrepareConfig, dataset_id: str) -> bytes:
        """``qc.html``."""
        return render(self.catalogue, self.duplicates, tally, config, dataset_id)


def review(
    url: str,
    shards: Sequence[Shard],
    samples: Sequence[Sample],
    studies: Mapping[str, Sequence[Header]],
    config: PrepareConfig,
    keyring: Keyring,
) -> Review:
    """Look at finished shards as a whole.

    Args:
        url: of the dataset.
        shards: the finished ones.
        samples: rows of the index, whose splits are not set yet.
        studies: headers by StudyInstanceUID: dates decide prepare.external_after and stay here.
        config: how to prepare.
        keyring: gives ids and the order of patients.

    Raises:
        UserError: a shard that cannot be read back, or a site, day or word that the studies do not have.
    """
    catalogue = Catalogue(url, shards, samples)
    pairs = duplicates.find_duplicates(catalogue.fingerprints, lambda entry: _load(catalogue, entry))
    late = splits.late_studies(studies, config.external_after, keyring)
    candidates = [
        splits.Candidate(
            study=sample.key,
            patient=sample.patient,
            site=catalogue.sites[sample.key],
            late=sample.key in late,
            words=catalogue.words[sample.key],
        )
        for sample in samples
    ]
    shared = [(pair.first.patient, pair.second.patient) for pair in pairs if not pair.same_patient]
    by_patient = splits.assign(candidates, shared, config, keyring)
    by_study = {sample.key: by_patient[sample.patient] for sample in samples}
    if config.duplicates is Duplicates.drop:
        by_study |= dict.fromkeys(duplicates.superfluous(pairs), LEFT_OUT)
    tables = {SERIES: catalogue.table, DUPLICATES: duplicates.table(pairs, by_study)}
    return Review(catalogue=catalogue, duplicates=pairs, splits=by_study, tables=tables)


def _load(catalogue: Catalogue, entry: Fingerprint) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Stored voxels and affine of a series."""
    meta = next(series for series in catalogue.study(entry.study).series if series.name == entry.series)
    stored = decode_volume(catalogue.member(entry.study, f"{entry.series}.b2")).astype(np.float32)
    return stored, np.asarray(meta.affine)
