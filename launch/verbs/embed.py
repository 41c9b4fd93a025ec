"""``fm embed``: features of shards, NIfTI files or a DICOM folder as Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fm.config.data import DataConfig
from fm.config.jobs.evaluation import EmbedJob

if TYPE_CHECKING:
    from evals.embed import Source


def run(job: EmbedJob) -> int:
    """Embed every study of the input; returns the exit code."""
    from evals.embed import embed
    from evals.progress import StageProgress

    out = Path(job.out)
    sources = sources_of(job.input, out, job.data)
    with StageProgress() as progress:
        written = embed(Path(job.encoder), sources, out, lambda done: progress("embed", done, len(sources)))
    print(f"{written.studies} studies in {out}: one row per study (series is empty) and one per series")
    if written.texts_cut:
        cut, lost = written.texts_cut, written.text_tokens_cut
        print(f"{cut} reports were longer than the encoder reads: {lost} tokens not read")
    print(f"next: python -c \"import pandas; print(pandas.read_parquet('{out}'))\"")
    return 0


def sources_of(given: str, out: Path, data: DataConfig) -> list[Source]:
    """Shards where there is a manifest, else NIfTI by name, else DICOM, which is prepared first."""
    from evals.embed import EmbedError, is_nifti, nifti_sources, shard_sources
    from fm.data.index import MANIFEST
    from fm.data.store import access_of

    if "://" in given or (Path(given) / MANIFEST).is_file():
        return shard_sources(given, access_of(data))
    path = Path(given)
    if not path.exists():
        raise EmbedError(f"input={given}: no such file or folder")
    if path.is_file() or any(is_nifti(file) for file in path.rglob("*")):
        return nifti_sources(path)
    return shard_sources(_prepared(path, out))


def _prepared(folder: Path, out: Path) -> str:
    """Shards of a DICOM folder, made beside `out` and kept: run again, they are there already."""
    from data_prep.prepare import prepare
    from fm.config.prepare import Deface, PrepareConfig

    shards = out.with_name(f"{out.name}.shards")
    out.parent.mkdir(parents=True, exist_ok=True)
    print(f"preparing DICOM in {shards}, its key beside it; delete both when nothing has to be traced back")
    # the shards stay beside the images they were made of, and embeddings show no face
    prepare(str(folder), None, None, str(shards), PrepareConfig(deface=Deface.none), 1)
    return str(shards)
