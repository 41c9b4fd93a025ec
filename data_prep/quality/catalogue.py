"""Every stored series as one row, read back from the finished shards: ``series.parquet``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.duplicates import Fingerprint
from data_prep.quality.checks import PERCENTILES
from fm.config.quality import LimitsConfig
from fm.data.index import Sample, SampleTable, Shard
from fm.data.sample import SeriesMeta, StudyMeta, from_json
from fm.data.store import Access, DatasetError, Request, Store

SERIES = "series.parquet"
CHECKS = tuple(sorted(field.name for field in fields(LimitsConfig)))
_AT_ONCE = 64
_WORDS = ("study", "series", "contrast", "role", "plane", "region", "site", "vendor", "voxel_hash", "likeness")
_NUMBERS = (
    "field_strength_t",
    *(f"spacing_{axis}_mm" for axis in "dhw"),
    "mean",
    "std",
    *(f"p{percent:g}" for percent in PERCENTILES),
    "foreground_share",
    "quantisation_error",
)
_SCHEMA = pa.schema(
    [
        *((word, pa.string()) for word in _WORDS),
        *((f"size_{axis}", pa.int32()) for axis in "dhw"),
        *((number, pa.float64()) for number in _NUMBERS),
        *((check, pa.float64()) for check in CHECKS),
        ("flags", pa.list_(pa.string())),
        ("bias_corrected", pa.bool_()),
    ]
)


@dataclass(kw_only=True, slots=True)
class Row:
    """What is kept in memory of one series."""

    study: str
    series: str
    site: str
    kind: str
    """Contrast and plane, for captions."""
    scanner: str
    """Vendor and field strength, for captions."""
    quality: dict[str, float]
    flags: list[str]


class Catalogue:
    """The series of a dataset whose shards are finished."""

    def __init__(self, url: str, shards: Sequence[Shard], samples: SampleTable) -> None:
        """Read every study's metadata once.

        Args:
            url: of the dataset.
            shards: the finished ones.
            samples: rows of the index; their splits are not needed yet.

        Raises:
            DatasetError: a shard that cannot be read back.
        """
        self.store = Store(url, Access(), {shard.name: shard.sha256 for shard in shards})
        self.samples = samples
        self.rows: list[Row] = []
        self.fingerprints: list[Fingerprint] = []
        self.words: dict[str, dict[str, Any]] = {}
        """By study: what a split may be stratified by."""
        self.sites: dict[str, str] = {}
        """By study: keyed id of the institution."""
        self.largest_error = 0.0
        """Of all series: the largest quantisation error over the range between the 1st and 99th percentile."""
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, _SCHEMA, compression="zstd") as writer:
            for studies in self._studies(samples):
                rows = [_row(study, series) for study in studies for series in study.series]
                writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))
                for study in studies:
                    self._remember(study)
        self.table = bytes(sink.getvalue())
        """``series.parquet``."""

    def study(self, key: str) -> StudyMeta:
        """Metadata of one study."""
        return from_json(self.member(key, "json"))

    def member(self, key: str, name: str) -> bytes | memoryview:
        """Bytes of one member."""
        row = self.samples.row(key)
        if row is None:
            raise KeyError(key)
        sample = self.samples[row]
        return self.store.read(Request(sample.shard, sample.members[name], f"study {key}, member {name}"))

    def _studies(self, samples: Sequence[Sample]) -> Iterator[list[StudyMeta]]:
        for start in range(0, len(samples), _AT_ONCE):
            part = samples[start : start + _AT_ONCE]
            wanted = [Request(s.shard, s.members["json"], f"study {s.key}, member json") for s in part]
            found = []
            for payload in self.store.read_many(wanted):
                if isinstance(payload, DatasetError):
                    raise payload
                found.append(from_json(payload))
            yield found

    def _remember(self, study: StudyMeta) -> None:
        first = study.series[0]
        known = {"sex": study.sex, "region": study.region, "site": study.site, "vendor": first.vendor}
        self.words[study.key] = {**known, **study.labels}
        self.sites[study.key] = study.site
        for series in study.series:
            field = "" if series.field_strength_t is None else f" {series.field_strength_t:g} T"
            self.rows.append(
                Row(
                    study=study.key,
                    series=series.name,
                    site=study.site,
                    kind=f"{series.contrast.value} {series.plane.value}",
                    scanner=f"{series.vendor or 'unknown vendor'}{field}",
                    quality=series.quality,
                    flags=series.flags,
                )
            )
            self.fingerprints.append(
                Fingerprint(
                    study=study.key,
                    series=series.name,
                    patient=study.patient,
                    kind=f"{series.contrast.value} {series.agent.value} {series.b_value}",
                    voxel_hash=series.voxel_hash,
                    likeness=series.likeness,
                )
            )
            if series.statistics is not None:
                reach = series.statistics.percentiles[-1] - series.statistics.percentiles[0]
                error = series.statistics.quantisation_error / reach if reach > 0 else 0.0
                self.largest_error = max(self.largest_error, error)


def _row(study: StudyMeta, series: SeriesMeta) -> dict[str, Any]:
    statistics = series.statistics
    row: dict[str, Any] = {
        "study": study.key,
        "series": series.name,
        "contrast": series.contrast.value,
        "role": series.role.value,
        "plane": series.plane.value,
        "region": series.region,
        "site": study.site,
        "vendor": series.vendor,
        "voxel_hash": series.voxel_hash,
        "likeness": series.likeness,
        **{f"size_{axis}": size for axis, size in zip("dhw", series.shape, strict=True)},
        "field_strength_t": series.field_strength_t,
        **{f"spacing_{axis}_mm": step for axis, step in zip("dhw", series.spacing_mm, strict=True)},
        **{check: series.quality.get(check) for check in CHECKS},
        "flags": series.flags,
        "bias_corrected": series.bias_corrected,
    }
    if statistics is not None:
        row |= {f"p{percent:g}": value for percent, value in zip(PERCENTILES, statistics.percentiles, strict=True)}
        row |= {name: getattr(statistics, name) for name in ("mean", "std", "foreground_share", "quantisation_error")}
    return row
