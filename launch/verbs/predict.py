"""``fm predict``: what a fine-tuned model says of shards or NIfTI files, as CSV or Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fm.config.errors import UserError
from fm.config.jobs.evaluation import PredictJob
from launch.verbs.embed import sources_of

BATCH = 16
"""Studies that are read at once."""


def run(job: PredictJob) -> int:
    """Predict every study of the input; returns the exit code."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    from evals.progress import StageProgress
    from fm.adapt.predict import load_predictor

    out = Path(job.out)
    if out.suffix not in (".csv", ".parquet"):
        raise UserError(f"out={out}: name a .csv or .parquet file")
    if out.exists():
        raise UserError(f"out={out} exists; name a new file")
    predictor = load_predictor(job.model)
    sources = sources_of(job.input, out, job.data)
    rows: list[dict[str, Any]] = []
    with StageProgress() as progress:
        for first in range(0, len(sources), BATCH):
            chunk = sources[first : first + BATCH]
            found = predictor.predict([[image for _, image in source.read()] for source in chunk])
            rows += [{"key": source.key, **row} for source, row in zip(chunk, found, strict=True)]
            progress("predict", len(rows), len(sources))
    out.parent.mkdir(parents=True, exist_ok=True)
    table, partial = pa.Table.from_pylist(rows), out.with_name(out.name + ".tmp")
    if out.suffix == ".csv":
        pyarrow.csv.write_csv(table, partial)
    else:
        pyarrow.parquet.write_table(table, partial)
    partial.rename(out)
    print(f"{predictor.scheme.label} of {len(rows)} studies in {out}")
    print(f"next: fm evaluate encoder={job.model} data.url=URL run=DIR")
    return 0
