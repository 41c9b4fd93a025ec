"""The index beside the shards: ``manifest.json`` and ``samples.parquet``, which make a member one ranged read.

``manifest.json`` names every shard with its SHA-256, bytes and samples, and is written last: a folder without it is
not a dataset yet. ``samples.parquet`` holds one row per study: where each member lies, its CRC-32, the patient, the
split and the labels.

Datasets live at a local path or at a URL of an allowed scheme; nothing a URL says is ever run or chained.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from fm.config.errors import UserError
from fm.data.sample import STUDY_KEY, LabelValue, SampleError, StudyMeta, from_json

MANIFEST = "manifest.json"
SAMPLES = "samples.parquet"
FORMAT = 1
SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "az", "memory")
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_SHARD = re.compile(r"[A-Za-z0-9_-]+\.tar")


class DatasetError(UserError):
    """A dataset that is missing, incomplete, damaged, or at a place that may not be read."""


@dataclass(slots=True)
class Member:
    """Where one member's bytes lie in its shard."""

    offset: int
    length: int
    crc32: int


@dataclass(kw_only=True, slots=True)
class Shard:
    """One tar file of the dataset."""

    name: str
    sha256: str
    bytes: int
    samples: int


@dataclass(kw_only=True, slots=True)
class Sample:
    """One study's row of the index."""

    key: str
    patient: str
    split: str
    region: str
    shard: str
    members: dict[str, Member]
    """By extension: 'json', '<series>.b2', '<series>.seg.b2'."""
    labels: dict[str, LabelValue] = field(default_factory=dict)


def open_store(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """File system and path of a dataset's folder.

    Raises:
        DatasetError: the URL's scheme is not on the allow-list (``pipe:`` and chained URLs among them).
    """
    found = _SCHEME.match(url)
    if found is None:
        if url.startswith("pipe:"):
            raise DatasetError("pipe: URLs run commands and are refused; use a folder or one of " + ", ".join(SCHEMES))
        return fsspec.filesystem("file"), os.path.abspath(url)
    scheme = found.group(1).lower()
    if scheme not in SCHEMES or "::" in url:
        raise DatasetError(f"{scheme}: URLs are not read; use a folder or one of {', '.join(SCHEMES)}")
    path = url[found.end() :].rstrip("/")
    if scheme == "file":
        return fsspec.filesystem("file"), os.path.abspath("/" + path.lstrip("/"))
    return fsspec.filesystem(scheme), path


class Manifest:
    """An opened dataset, or the part of it that :meth:`select` chose; picklable, and safe to use after a fork."""

    def __init__(
        self, url: str, dataset_id: str, shards: list[Shard], samples: list[Sample], versions: dict[str, str]
    ) -> None:
        self.url = url
        self.dataset_id = dataset_id
        self.shards = shards
        self.samples = samples
        self.versions = versions
        self._row = {sample.key: row for row, sample in enumerate(samples)}
        self._maps: dict[str, mmap.mmap] = {}
        self._pid = os.getpid()

    @classmethod
    def open(cls, url: str) -> Manifest:
        """Read the index at `url` and check it: format, sizes of all files, counts.

        Raises:
            DatasetError: no dataset there, another format version, or an index that contradicts its files.
        """
        fs, root = open_store(url)
        raw = _manifest_json(fs, root, url)
        try:
            shards = [Shard(**entry) for entry in raw["shards"]]
            table_info = raw["samples"]
            dataset_id, versions = str(raw["dataset_id"]), dict(raw["versions"])
            expected = (int(table_info["bytes"]), str(table_info["sha256"]))
        except (KeyError, TypeError, ValueError) as err:
            raise DatasetError(f"{url}/{MANIFEST} is damaged ({err}); make the index again") from None
        payload = _fetch(fs, f"{root}/{SAMPLES}", url)
        if (len(payload), hashlib.sha256(payload).hexdigest()) != expected:
            raise DatasetError(f"{url}/{SAMPLES} is not the one {MANIFEST} names; make the index again")
        samples = _from_parquet(payload, url)
        _check_counts(fs, root, url, shards, samples)
        if dataset_id != dataset_hash(shards, samples):
            raise DatasetError(f"{url}/{MANIFEST}: the dataset id does not fit the contents; make the index again")
        return cls(url, dataset_id, shards, samples, versions)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def keys(self) -> list[str]:
        """Study keys, in order."""
        return [sample.key for sample in self.samples]

    def select(self, split: str | None = None, region: str | None = None) -> Manifest:
        """The studies of one split and region, same dataset id; None takes all."""
        kept = [s for s in self.samples if split in (None, s.split) and region in (None, s.region)]
        return Manifest(self.url, self.dataset_id, self.shards, kept, self.versions)

    def sample(self, key: str) -> Sample:
        """The index row of one study.

        Raises:
            DatasetError: no such study here.
        """
        if key not in self._row:
            raise DatasetError(f"{self.url}: no study {key}")
        return self.samples[self._row[key]]

    def read(self, key: str, member: str) -> bytes:
        """Bytes of one member of a study, e.g. ``read(key, "t1w.b2")``: one ranged read, checked by CRC-32.

        Raises:
            DatasetError: unknown study or member, or bytes that are missing or damaged; names shard and study.
        """
        sample = self.sample(key)
        where = sample.members.get(member)
        if where is None:
            raise DatasetError(f"{self.url}: study {key} has no member {member!r}; it has {sorted(sample.members)}")
        payload = self._range(sample.shard, where, key)
        if len(payload) != where.length or zlib.crc32(payload) != where.crc32:
            raise DatasetError(f"{self.url}/{sample.shard}: study {key}, member {member} is damaged; run fm verify")
        return payload

    def study(self, key: str) -> StudyMeta:
        """The parsed JSON member of a study.

        Raises:
            DatasetError: as :meth:`read`.
            SampleError: the member breaks the shard contract.
        """
        meta = from_json(self.read(key, "json"))
        if meta.key != key:
            raise SampleError(f"study {key}: its json member calls itself {meta.key}")
        return meta

    def _range(self, shard: str, where: Member, key: str) -> bytes:
        fs, root = open_store(self.url)
        if "file" not in fs.protocol:
            try:
                return bytes(fs.cat_file(f"{root}/{shard}", start=where.offset, end=where.offset + where.length))
            except FileNotFoundError as err:
                raise DatasetError(f"{self.url}/{shard}: missing (wanted by study {key})") from err
        if os.getpid() != self._pid:
            self._maps, self._pid = {}, os.getpid()
        if shard not in self._maps:
            try:
                with Path(root, shard).open("rb") as file:
                    self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as err:
                raise DatasetError(f"{self.url}/{shard}: cannot be read (wanted by study {key}): {err}") from err
        return self._maps[shard][where.offset : where.offset + where.length]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}


def write_index(
    url: str,
    shards: Sequence[Shard],
    samples: Sequence[Sample],
    versions: Mapping[str, str],
) -> str:
    """Write ``samples.parquet`` and then ``manifest.json`` beside shards that already stand at `url`.

    Args:
        url: the dataset's folder.
        shards: in name order, from :func:`fm.data.verify.scan_shard`.
        samples: rows in shard order, their splits filled in.
        versions: versions of code, config and de-identification rules.

    Returns:
        The dataset id: a hash of shard contents, keys and splits; equal contents give equal ids, wherever they lie.

    Raises:
        DatasetError: no sample, a study that appears twice, or a study without a split.
    """
    keys = [sample.key for sample in samples]
    if not keys or len(set(keys)) != len(keys) or not all(sample.split for sample in samples):
        raise DatasetError(f"{url}: the index needs at least one study, each once and with a split")
    fs, root = open_store(url)
    table = _to_parquet(samples)
    dataset_id = dataset_hash(shards, samples)
    manifest = {
        "format": FORMAT,
        "dataset_id": dataset_id,
        "shards": [asdict(shard) for shard in shards],
        "samples": {
            "file": SAMPLES,
            "rows": len(samples),
            "bytes": len(table),
            "sha256": hashlib.sha256(table).hexdigest(),
        },
        "versions": dict(versions),
    }
    publish(fs, f"{root}/{SAMPLES}", table)
    publish(fs, f"{root}/{MANIFEST}", (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())
    return dataset_id


def publish(fs: fsspec.AbstractFileSystem, path: str, payload: bytes) -> None:
    """Write a file whole or not at all: a temporary neighbour, fsync and rename on disk; one put elsewhere."""
    if "file" not in fs.protocol:
        fs.pipe_file(path, payload)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    with temporary.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, target)


def dataset_hash(shards: Sequence[Shard], samples: Sequence[Sample]) -> str:
    """Hash of what the dataset holds: shard contents in order, and which study is in which split."""
    content = {
        "shards": [[shard.name, shard.sha256, shard.samples] for shard in shards],
        "splits": sorted([sample.key, sample.split] for sample in samples),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _manifest_json(fs: fsspec.AbstractFileSystem, root: str, url: str) -> dict[str, Any]:
    payload = _fetch(fs, f"{root}/{MANIFEST}", url)
    try:
        raw = json.loads(payload)
    except (ValueError, RecursionError):
        raise DatasetError(f"{url}/{MANIFEST} is not JSON; make the index again") from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        version = raw.get("format") if isinstance(raw, dict) else None
        raise DatasetError(f"{url}/{MANIFEST} has format {version!r}; this code reads format {FORMAT}")
    return raw


def _fetch(fs: fsspec.AbstractFileSystem, path: str, url: str) -> bytes:
    try:
        return bytes(fs.cat_file(path))
    except (FileNotFoundError, NotADirectoryError):
        name = path.rsplit("/", 1)[-1]
        raise DatasetError(f"{url} holds no {name}: not a dataset, or fm prepare has not finished there") from None
    except PermissionError as err:
        raise DatasetError(f"{url}: access denied ({err})") from None


def _check_counts(
    fs: fsspec.AbstractFileSystem, root: str, url: str, shards: Sequence[Shard], samples: Sequence[Sample]
) -> None:
    counts: dict[str, int] = {}
    for sample in samples:
        counts[sample.shard] = counts.get(sample.shard, 0) + 1
        if not STUDY_KEY.fullmatch(sample.key):
            raise DatasetError(f"{url}/{SAMPLES}: study key {sample.key[:80]!r} is not one")
    if counts != {shard.name: shard.samples for shard in shards} or len({s.key for s in samples}) != len(samples):
        raise DatasetError(f"{url}: {MANIFEST} and {SAMPLES} count different studies; make the index again")
    for shard in shards:
        if not _SHARD.fullmatch(shard.name):
            raise DatasetError(f"{url}/{MANIFEST}: shard name {shard.name[:80]!r} is refused")
        try:
            size = int(fs.size(f"{root}/{shard.name}"))
        except FileNotFoundError:
            raise DatasetError(f"{url}/{shard.name}: missing; copy the dataset again or prepare it again") from None
        if size != shard.bytes:
            raise DatasetError(f"{url}/{shard.name}: {size} bytes where the manifest says {shard.bytes}; run fm verify")
    ends = {shard.name: shard.bytes for shard in shards}
    for sample in samples:
        if any(not 0 <= m.offset <= m.offset + m.length <= ends[sample.shard] for m in sample.members.values()):
            raise DatasetError(f"{url}/{SAMPLES}: study {sample.key} lies outside its shard; make the index again")


_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("patient", pa.string()),
        ("split", pa.string()),
        ("region", pa.string()),
        ("shard", pa.string()),
        (
            "members",
            pa.list_(
                pa.struct(
                    [("name", pa.string()), ("offset", pa.int64()), ("length", pa.int64()), ("crc32", pa.int64())]
                )
            ),
        ),
        ("labels", pa.string()),
    ]
)


def _to_parquet(samples: Sequence[Sample]) -> bytes:
    rows = [
        {
            "key": s.key,
            "patient": s.patient,
            "split": s.split,
            "region": s.region,
            "shard": s.shard,
            "members": [{"name": name, **asdict(member)} for name, member in sorted(s.members.items())],
            "labels": json.dumps(s.labels, sort_keys=True),
        }
        for s in samples
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), sink, compression="zstd")
    return sink.getvalue()


def _from_parquet(payload: bytes, url: str) -> list[Sample]:
    try:
        rows = pq.read_table(io.BytesIO(payload), schema=_SCHEMA).to_pylist()
        return [
            Sample(
                **{
                    **row,
                    "members": {m["name"]: Member(m["offset"], m["length"], m["crc32"]) for m in row["members"]},
                    "labels": json.loads(row["labels"]),
                }
            )
            for row in rows
        ]
    except (pa.ArrowException, ValueError, TypeError, KeyError) as err:
        raise DatasetError(f"{url}/{SAMPLES} is damaged ({type(err).__name__}); make the index again") from None
