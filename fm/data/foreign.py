"""Shards that others wrote: an index beside those that follow our contract, and shards of our own from any others.

A foreign sample is what plain webdataset makes of a tar: members with one key, lower-cased at the first dot. Voxels
come as NIfTI (``nii``, ``nii.gz``) or NumPy (``npy``), text as UTF-8, fields as JSON; everything else stays unread, and
nothing is ever unpickled. Voxels are converted once: no foreign format gives a crop without the rest.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fm.data.codec import CodecError
from fm.data.index import MANIFEST, SAMPLES, DatasetError, Sample, Shard, open_store, publish, write_index
from fm.data.mapping import (
    ForeignError,
    Mapping,
    age_of,
    is_voxels,
    label_of,
    parse_fields,
    read_npy,
    series_name,
    split_name,
)
from fm.data.sample import Agent, Report, Role, SampleError, SeriesMeta, StudyMeta, to_json
from fm.data.table import SampleTable
from fm.data.verify import scan_shard
from fm.data.volume import VolumeError, load_nifti, measure

_LARGEST_TEXT = 2**24
_LARGEST_MEMBER = 2**32
_LONGEST_KEY = 60
"""Of a study: tar has 100 bytes for the name of a member."""

Members = dict[str, bytes]


@dataclass(kw_only=True, slots=True)
class Indexed:
    """What :func:`index_shards` did."""

    dataset_id: str
    shards: int
    studies: int
    series: int
    ignored: dict[str, int]
    """Members of other kinds by extension."""
    problems: list[str]
    """One line per sample that was left out."""


def index_shards(url: str, out: str | None, mapping: Mapping, test_fraction: float, split_seed: int) -> Indexed:
    """Make foreign shards a dataset.

    Args:
        url: folder of the ``*.tar`` files.
        out: where shards of our own are written; None: those at `url` follow our contract and get an index.
        mapping: of members and fields.
        test_fraction: share of patients in the split ``test`` where the samples name none.
        split_seed: another number draws another split.

    Raises:
        ForeignError: no shards, an existing dataset at `out`, or nothing that could be read.
        DatasetError: a shard that is damaged, or a patient in two splits.
    """
    mapping.check()
    fs, root = open_store(url)
    try:
        names = sorted(path.rsplit("/", 1)[-1] for path in fs.ls(root, detail=False) if path.endswith(".tar"))
    except (FileNotFoundError, NotADirectoryError):
        names = []
    if not names:
        raise ForeignError(f"url={url}: no *.tar there; name the folder of the shards")
    state = _State(mapping)
    if out is None:
        state.splits = _present_splits(fs, root)
    elif _holds_dataset(out):
        raise ForeignError(f"out={out}: a dataset is there already; name a new folder")
    shards: list[Shard] = []
    samples: list[Sample] = []
    for number, name in enumerate(names):
        with fs.open(f"{root}/{name}", "rb") as stream:
            if out is None:
                shard, rows = _own(stream, name)
            else:
                payload = state.rewrite(stream, name)
                if payload is None:
                    continue
                shard, rows = _publish(out, f"shard-{number:06d}.tar", payload)
        shards.append(shard)
        samples += rows
    if not samples:
        first = f", first {state.problems[0]}" if state.problems else ""
        raise ForeignError(f"url={url}: no sample could be read{first}")
    for sample in samples:
        sample.split = state.splits.get(sample.key) or _drawn_split(sample.patient, test_fraction, split_seed)
    kind = "foreign" if out is not None else "own"
    dataset_id = write_index(out or url, shards, samples, {"index": kind, "deidentification": "none: as it came"})
    series = sum(name.endswith(".b2") and not name.endswith(".seg.b2") for s in samples for name in s.members)
    return Indexed(
        dataset_id=dataset_id,
        shards=len(shards),
        studies=len(samples),
        series=series,
        ignored=dict(state.ignored),
        problems=state.problems,
    )


def _present_splits(fs: Any, root: str) -> dict[str, str]:
    """Splits of an index that is there: indexed again, a study must not change sides."""
    if not fs.exists(f"{root}/{SAMPLES}"):
        return {}
    try:
        rows = SampleTable.from_parquet(fs.cat_file(f"{root}/{SAMPLES}"))
    except Exception as err:  # pyarrow reports damage through many types
        raise ForeignError(
            f"{root}/{SAMPLES} is damaged ({type(err).__name__}), and with it the splits: remove it to draw new ones"
        ) from None
    return dict(zip(rows.column("key").to_pylist(), rows.column("split").to_pylist(), strict=True))


def _holds_dataset(url: str) -> bool:
    fs, root = open_store(url)
    return bool(fs.exists(f"{root}/{MANIFEST}"))


def _own(stream: Any, name: str) -> tuple[Shard, list[Sample]]:
    try:
        return scan_shard(stream, name)
    except DatasetError as err:
        if "refuses member" in str(err):
            raise DatasetError(f"{err}; give out=URL to make shards of ours from these") from None
        raise


def _publish(out: str, name: str, payload: bytes) -> tuple[Shard, list[Sample]]:
    fs, root = open_store(out)
    publish(fs, f"{root}/{name}", payload)
    return scan_shard(io.BytesIO(payload), name)


class _State:
    """Conversion of shard after shard, and what was met on the way."""

    def __init__(self, mapping: Mapping) -> None:
        self.mapping = mapping
        self.ignored: Counter[str] = Counter()
        self.problems: list[str] = []
        self.splits: dict[str, str] = {}
        self._keys: set[str] = set()

    def rewrite(self, stream: Any, shard: str) -> bytes | None:
        """A shard of ours; None where no sample of it could be read."""
        sink = io.BytesIO()
        count = 0
        with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for key, members in self._samples(stream, shard):
                try:
                    converted = self._study(key, members)
                except (SampleError, CodecError, VolumeError, ValueError) as err:
                    self.problems.append(f"{shard}, sample {key[:80]}: {err}")
                    continue
                count += 1
                for name, payload in converted.items():
                    entry = tarfile.TarInfo(name)
                    entry.size = len(payload)
                    tar.addfile(entry, io.BytesIO(payload))
        return sink.getvalue() if count else None

    def _samples(self, stream: Any, shard: str) -> Iterator[tuple[str, Members]]:
        """Samples as webdataset groups them: neighbours with one key."""
        key, members = "", Members()
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for entry in tar:
                    stem, dot, extension = split_name(entry.name)
                    if not entry.isreg() or not dot:
                        self.ignored[extension or "without extension"] += 1
                        continue
                    if stem != key and members:
                        yield key, members
                        members = Members()
                    key = stem
                    if not self._wanted(extension):
                        self.ignored[extension] += 1
                        continue
                    if entry.size > (_LARGEST_MEMBER if is_voxels(extension) else _LARGEST_TEXT):
                        self.problems.append(f"{shard}, sample {key[:80]}: {extension} of {entry.size} bytes")
                        continue
                    file = tar.extractfile(entry)
                    members[extension] = file.read() if file is not None else b""
        except (tarfile.TarError, EOFError) as err:
            raise DatasetError(f"{shard}: not a whole tar file ({err}); copy it again") from err
        if members:
            yield key, members

    def _wanted(self, extension: str) -> bool:
        mapping = self.mapping
        return extension in (mapping.report, mapping.metadata) or mapping.contrast(extension) is not None

    def _study(self, theirs: str, members: Members) -> Members:
        """Members of one study of ours by their names in the tar."""
        key = re.sub(r"[^a-z0-9_]+", "_", theirs.lower()).strip("_")
        if not key or len(key) > _LONGEST_KEY or key in self._keys:
            raise SampleError(f"its key becomes {key[:80]!r}, which is empty, too long or another sample's")
        fields = parse_fields(members.get(self.mapping.metadata))
        images = [name for name in members if self.mapping.contrast(name) is not None]
        if not images:
            raise SampleError("has no voxel member")
        series: list[SeriesMeta] = []
        payloads: Members = {}
        for extension in sorted(images):
            meta, payload = self._series(extension, members[extension], fields, len(series))
            if meta.name in {other.name for other in series}:
                raise SampleError(f"two voxel members are called {meta.name}")
            series.append(meta)
            payloads[f"{key}.{meta.name}.b2"] = payload
        study = self._meta(key, members, fields, series)
        converted = {f"{key}.json": to_json(study), **payloads}
        self._keys.add(key)
        if (split := self.mapping.value(fields, "split")) is not None:
            self.splits[key] = str(split)
        return converted

    def _series(self, extension: str, payload: bytes, fields: dict[str, Any], number: int) -> tuple[SeriesMeta, bytes]:
        contrast = self.mapping.contrast(extension)
        assert contrast is not None
        if extension.endswith("npy"):
            values, affine = read_npy(payload), self._affine(fields)
        else:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "image.nii.gz" if extension.endswith(".gz") else "image.nii")
                path.write_bytes(payload)
                try:
                    values, affine = load_nifti(path)
                except VolumeError as err:
                    raise VolumeError(str(err).replace(str(path), extension)) from None
        image, encoded = measure(values, affine, extension, contrast, Agent.UNKNOWN)
        depth = image.stored.shape[0]
        meta = SeriesMeta(
            name=series_name(extension),
            contrast=contrast,
            role=Role.ORIGINAL,
            plane=image.plane,
            shape=(depth, image.stored.shape[1], image.stored.shape[2]),
            spacing_mm=image.spacing_mm,
            affine=image.affine.tolist(),
            slice_position_mm=[image.spacing_mm[0] * i for i in range(depth)],
            slice_valid=[True] * depth,
            frame_of_reference=number,  # nothing says that foreign series share coordinates
            foreground=image.foreground,
            intensity_scale=encoded.scale,
            intensity_offset=encoded.offset,
            intensity_low=image.low,
            intensity_high=image.high,
            region=str(self.mapping.value(fields, "region") or "unknown"),
        )
        return meta, encoded.payload

    def _affine(self, fields: dict[str, Any]) -> NDArray[np.float64]:
        """(4, 4) of an npy member (D, H, W): its own, or axial slices with D toward S, H toward A and W toward R."""
        found = self.mapping.value(fields, "affine")
        if found is not None:
            affine = np.asarray(found, dtype=np.float64)
            if affine.shape != (4, 4):
                raise SampleError("its affine is not 4×4")
            return affine
        given = self.mapping.value(fields, "spacing_mm")
        spacing = np.asarray(self.mapping.spacing_mm if given is None else given, dtype=np.float64)
        if spacing.shape != (3,) or not (np.isfinite(spacing).all() and spacing.min() > 0):
            raise SampleError("its spacing_mm is not three lengths above 0")
        affine = np.eye(4)
        affine[:3, :3] = np.diag(spacing)[::-1]
        return affine

    def _meta(self, key: str, members: Members, fields: dict[str, Any], series: list[SeriesMeta]) -> StudyMeta:
        text = members.get(self.mapping.report, b"").decode("utf-8").strip()
        text = text or str(self.mapping.value(fields, "report") or "").strip()
        sex = str(self.mapping.value(fields, "sex") or "").lower()[:1]
        patient = self.mapping.value(fields, "patient")
        return StudyMeta(
            key=key,
            patient=str(key if patient is None else patient),
            region=str(self.mapping.value(fields, "region") or "unknown"),
            series=series,
            age=age_of(self.mapping.value(fields, "age")),
            sex=sex if sex in ("f", "m", "o") else None,
            report=Report(findings=text) if text else None,
            labels={name: label_of(name, fields[name]) for name in self.mapping.labels if fields.get(name) is not None},
        )


def _drawn_split(patient: str, test_fraction: float, seed: int) -> str:
    digest = hashlib.blake2b(f"{seed}\x1f{patient}".encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "little") / 2**64 < test_fraction else "train"
