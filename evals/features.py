"""Features as Parquet: one row per study and per series, vectors as lists of float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evals.cohort import Cohort
from evals.embedding import Embeddings
from fm.probes.types import Floats

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("series", pa.string()),
        ("split", pa.string()),
        ("region", pa.string()),
        ("features", pa.list_(pa.float32())),
        ("embedding", pa.list_(pa.float32())),
        ("text_embedding", pa.list_(pa.float32())),
    ]
)
"""`series` is empty in a study's own row. `features` are what probes read, `embedding` lies in the space of texts."""


def write_features(path: Path, cohort: Cohort, encoder: Embeddings, text_NE: Floats | None) -> None:
    """Write the features of an evaluation in one step.

    A series' row has no embedding.
    """
    rows: list[dict[str, Any]] = []
    for row, study in enumerate(cohort.studies):
        told = text_NE is not None and study.report is not None
        rows.append(
            {
                "key": study.key,
                "series": "",
                "split": "test" if cohort.test_N[row] else "train",
                "region": study.region,
                "features": encoder.study_ND[row],
                "embedding": encoder.image_NE[row],
                "text_embedding": text_NE[row] if told and text_NE is not None else None,
            }
        )
    for (row, series), vector in zip(cohort.series, encoder.series_MD, strict=True):
        study, split = cohort.studies[row], "test" if cohort.test_N[row] else "train"
        rows.append(
            {"key": study.key, "series": series.name, "split": split, "region": study.region, "features": vector}
        )
    write_rows(path, rows)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows of :data:`SCHEMA` whole or not at all; absent columns are null."""
    partial = path.with_name(path.name + ".tmp")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), partial, compression="zstd")
    partial.replace(path)


def merge(parts: list[Path], out: Path) -> None:
    """Join files of :data:`SCHEMA` into one, a part at a time, whole or not at all."""
    partial = out.with_name(out.name + ".tmp")
    with pq.ParquetWriter(partial, SCHEMA, compression="zstd") as writer:
        for part in parts:
            writer.write_table(pq.read_table(part, schema=SCHEMA))
    partial.replace(out)
