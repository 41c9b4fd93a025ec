"""``fm embed``: features of shards or of NIfTI files as Parquet, batch by batch, so that a killed run goes on."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.embedding import file_hash, read_images
from evals.features import merge, write_rows
from evals.frozen import FrozenEncoder, load_frozen
from evals.workers import in_workers
from fm.config.errors import UserError
from fm.data.index import Manifest
from fm.data.sample import StudyMeta
from fm.data.store import Access
from fm.data.sweep import Sweep, read_studies
from fm.data.volume import SeriesImage, read_nifti

BATCH = 16
"""Studies per part."""


class EmbedError(UserError):
    """Nothing to embed, or a place that cannot be written to."""


@dataclass(kw_only=True, slots=True)
class Source:
    """One study to embed: read only when its turn comes."""

    key: str
    split: str
    region: str
    text: str
    read: Callable[[], list[tuple[str, SeriesImage]]]
    """Name and voxels of each series."""


def shard_sources(url: str, access: Access | None = None) -> list[Source]:
    """Every study of a dataset; its voxels are read in the order of the shards, ahead of their turn.

    Args:
        url: the dataset's folder.
        access: how object storage is read; its defaults where None.

    Raises:
        DatasetError: no dataset at the URL.
    """
    manifest = Manifest.open(url, access)
    keys = manifest.keys
    sweep = Sweep(manifest, [keys[first : first + BATCH] for first in range(0, len(keys), BATCH)])
    splits = manifest.samples.column("split").to_pylist()
    return [
        _shard_source(sweep, study, split) for study, split in zip(read_studies(manifest, keys), splits, strict=True)
    ]


def nifti_sources(path: Path) -> list[Source]:
    """One NIfTI file, or every one below a folder; each is a study of one series, named by its path.

    Raises:
        EmbedError: no NIfTI file there.
    """
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if is_nifti(p))
    if not files:
        raise EmbedError(f"input={path}: no NIfTI file (.nii, .nii.gz) there")
    root = path.parent if path.is_file() else path
    return [_nifti_source(file, str(file.relative_to(root))) for file in files]


def is_nifti(path: Path) -> bool:
    """Whether a file's name ends as a NIfTI file's does."""
    return path.is_file() and path.name.endswith((".nii", ".nii.gz"))


@dataclass(kw_only=True, slots=True)
class Written:
    """What :func:`embed` did."""

    studies: int
    texts_cut: int
    """Texts that were longer than the encoder reads."""
    text_tokens_cut: int
    """Tokens of them that it did not read; neither counts batches of an earlier, killed run."""


def embed(
    encoder: Path, sources: Sequence[Source], out: Path, progress: Callable[[int], None] | None = None
) -> Written:
    """Write one row per study and per series, see :data:`evals.features.SCHEMA`.

    Finished batches lie in a folder beside `out` until the end, named by the encoder's weights and the keys to embed;
    run again, they are not made a second time.

    Raises:
        EncoderError: the folder holds no readable encoder.
        EmbedError: `out` exists already.
        VolumeError, DatasetError, CodecError, SampleError: a study that cannot be read.
    """
    if out.exists():
        raise EmbedError(f"out={out} exists; name a new file")
    loaded = load_frozen(encoder)
    parts = out.with_name(f".{out.name}.{_task_id(encoder, sources)}.parts")
    parts.mkdir(parents=True, exist_ok=True)

    def work(first: int) -> int:
        part = parts / f"{first:08d}.parquet"
        if not part.is_file():
            write_rows(part, list(_rows(loaded, sources[first : first + BATCH])))
        return min(first + BATCH, len(sources))

    for done in in_workers(loaded, work, range(0, len(sources), BATCH)):
        if progress is not None:
            progress(done)
    merge(sorted(parts.glob("*.parquet")), out)
    shutil.rmtree(parts)
    return Written(studies=len(sources), texts_cut=loaded.texts_cut, text_tokens_cut=loaded.text_tokens_cut)


def _rows(encoder: FrozenEncoder, sources: Sequence[Source]) -> Iterator[dict[str, Any]]:
    named = [source.read() for source in sources]
    found = encoder.encode_studies([[image for _, image in series] for series in named])
    texts = None if encoder.tokenizer is None else encoder.embed_text([source.text for source in sources])
    for at, source in enumerate(sources):
        about = {"key": source.key, "split": source.split, "region": source.region}
        text = texts[at] if texts is not None and source.text else None
        features, embedding = found.study[at], found.projected[at]
        yield {**about, "series": "", "features": features, "embedding": embedding, "text_embedding": text}
    names = [(at, name) for at, series in enumerate(named) for name, _ in series]
    for row, (at, name) in enumerate(names):
        source = sources[at]
        yield {
            "key": source.key,
            "series": name,
            "split": source.split,
            "region": source.region,
            "features": found.series[row],
            "embedding": found.series_projected[row],
        }


def _shard_source(sweep: Sweep, study: StudyMeta, split: str) -> Source:
    def read() -> list[tuple[str, SeriesImage]]:
        return list(zip([s.name for s in study.series], read_images(sweep.take(study.key), study), strict=True))

    text = study.report.diagnostic if study.report is not None else ""
    return Source(key=study.key, split=split, region=study.region, text=text, read=read)


def _nifti_source(file: Path, name: str) -> Source:
    key = name.removesuffix(".gz").removesuffix(".nii")
    return Source(key=key, split="", region="", text="", read=lambda: [("image", read_nifti(file))])


def _task_id(encoder: Path, sources: Sequence[Source]) -> str:
    digest = hashlib.sha256()
    for weights in sorted(encoder.glob("*.safetensors")):
        digest.update(file_hash(weights).encode())
    for source in sources:
        digest.update(f"{source.key}\n".encode())
    return digest.hexdigest()[:12]
