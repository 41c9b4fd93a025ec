"""The index beside the shards: ``manifest.json`` and ``samples.parquet``, which make a member one ranged read.

``manifest.json`` names every shard with its SHA-256, bytes and samples, and is written last: a folder without it is
not a dataset yet. ``samples.parquet`` holds one row per study: where each member lies, its CRC-32, the patient, the
split and the labels.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fm.data.history import SAMPLES, History, Shard
from fm.data.sample import STUDY_KEY, SampleError, StudyMeta, from_json
from fm.data.store import Access, DatasetError, Member, Request, Store, open_store
from fm.data.table import Sample, SampleTable

__all__ = [
    "MANIFEST",
    "SAMPLES",
    "DatasetError",
    "History",
    "Manifest",
    "Member",
    "Sample",
    "SampleTable",
    "Shard",
    "dataset_hash",
    "open_store",
    "publish",
    "write_index",
]

MANIFEST = "manifest.json"
FORMAT = 1
LEFT_OUT = "duplicate"
"""Split of studies that are neither trained on nor evaluated: prepare.duplicates=drop."""
_SHARD = re.compile(r"[A-Za-z0-9_-]+\.tar")
_TABLE = re.compile(r"samples(-\d{1,6})?\.parquet")


class Manifest:
    """An opened dataset, or the part of it that :meth:`select` chose; picklable, and safe to use after a fork."""

    def __init__(
        self,
        url: str,
        dataset_id: str,
        shards: list[Shard],
        samples: SampleTable,
        versions: dict[str, str],
        access: Access | None = None,
        history: History | None = None,
        tables: Mapping[str, str] | None = None,
    ) -> None:
        self.url = url
        self.dataset_id = dataset_id
        self.shards = shards
        self.samples = samples
        self.versions = versions
        self.history = history or History()
        self.tables = dict(tables or {})
        self.store = Store(url, access or Access(), {shard.name: shard.sha256 for shard in shards})
        self._last: Sample | None = None

    @classmethod
    def open(cls, url: str, access: Access | None = None) -> Manifest:
        """Read the index at `url` and check it: format, sizes of all files, counts, splits.

        Args:
            url: the dataset's folder.
            access: how object storage is read; its defaults where None.

        Raises:
            DatasetError: no dataset there, another format version, an index that contradicts its files, or a patient
                in two splits.
        """
        store = Store(url, access or Access())
        raw = _manifest_json(store)
        try:
            shards = [Shard(**entry) for entry in raw["shards"]]
            table_info = raw["samples"]
            dataset_id, versions = str(raw["dataset_id"]), dict(raw["versions"])
            expected = (int(table_info["bytes"]), str(table_info["sha256"]))
            name = str(table_info.get("file", SAMPLES))
            history = History(
                parents=[str(parent) for parent in raw.get("parents", [])],
                changes=[dict(change) for change in raw.get("changes", [])],
                samples=name,
            )
            if not _TABLE.fullmatch(name):
                raise ValueError(f"samples in {name[:80]!r}")
            tables = {str(table): str(digest) for table, digest in raw.get("tables", {}).items()}
        except (KeyError, TypeError, ValueError, AttributeError) as err:
            raise DatasetError(f"{url}/{MANIFEST} is damaged ({err}); make the index again") from None
        payload = _whole(store, name)
        if (len(payload), hashlib.sha256(payload).hexdigest()) != expected:
            raise DatasetError(f"{url}/{name} is not the one {MANIFEST} names; make the index again")
        try:
            samples = SampleTable.from_parquet(payload)
        except (pa.ArrowException, ValueError, TypeError, KeyError) as err:
            raise DatasetError(f"{url}/{name} is damaged ({type(err).__name__}); make the index again") from None
        del payload
        _check_counts(url, shards, samples)
        _check_files(store, shards, samples)
        check_splits(url, samples)
        if dataset_id != dataset_hash(shards, samples):
            raise DatasetError(f"{url}/{MANIFEST}: the dataset id does not fit the contents; make the index again")
        return cls(url, dataset_id, shards, samples, versions, access, history, tables)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def keys(self) -> list[str]:
        """Study keys, in order."""
        return [str(key) for key in self.samples.column("key").to_pylist()]

    def select(self, split: str | None = None, region: str | None = None) -> Manifest:
        """The studies of one split and region, same dataset id; None takes all."""
        return self._only(self.samples.where(split=split, region=region))

    def where(self, kept_N: Sequence[bool]) -> Manifest:
        """The studies of the rows that are true, same dataset id."""
        return self._only(self.samples.kept(kept_N))

    def _only(self, samples: SampleTable) -> Manifest:
        return Manifest(
            self.url, self.dataset_id, self.shards, samples, self.versions, self.store.access, self.history, self.tables
        )

    def key(self, row: int) -> str:
        """Key of the study in a row."""
        return str(self.samples.column("key")[row].as_py())

    def sample(self, key: str) -> Sample:
        """The index row of one study.

        Raises:
            DatasetError: no such study here.
        """
        last = self._last  # taken once: a thread that reads ahead asks too
        if last is None or last.key != key:
            row = self.samples.row(key)
            if row is None:
                raise DatasetError(f"{self.url}: no study {key}")
            self._last = last = self.samples[row]
        return last

    def request(self, key: str, member: str) -> Request:
        """Where one member of a study lies, e.g. ``request(key, "t1w.b2")``.

        Raises:
            DatasetError: unknown study or member.
        """
        sample = self.sample(key)
        where = sample.members.get(member)
        if where is None:
            raise DatasetError(f"{self.url}: study {key} has no member {member!r}; it has {sorted(sample.members)}")
        return Request(sample.shard, where, f"study {key}, member {member}")

    def read(self, key: str, member: str) -> bytes | memoryview:
        """Bytes of one member of a study: one ranged read, checked by CRC-32.

        Raises:
            DatasetError: unknown study or member, or bytes that are missing, damaged or out of reach; names shard and
                study.
        """
        return self.store.read(self.request(key, member))

    def table(self, name: str) -> pa.Table | None:
        """A Parquet table beside the shards, ``series.parquet`` say; None where this dataset has none of the name.

        Raises:
            DatasetError: missing, or not the one that the manifest names.
        """
        if name not in self.tables:
            return None
        file = self.history.named(name)
        payload = _whole(self.store, file)
        if hashlib.sha256(payload).hexdigest() != self.tables[name]:
            raise DatasetError(f"{self.url}/{file} is not the one {MANIFEST} names; prepare the dataset again")
        return pq.read_table(pa.BufferReader(payload))

    def study(self, key: str) -> StudyMeta:
        """The parsed JSON member of a study.

        Raises:
            DatasetError: as :meth:`read`.
            SampleError: the member breaks the shard contract.
        """
        return parse_study(key, self.read(key, "json"))


def parse_study(key: str, payload: bytes | memoryview) -> StudyMeta:
    """A study's JSON member.

    Raises:
        SampleError: it breaks the shard contract, or is another study's.
    """
    meta = from_json(bytes(payload))
    if meta.key != key:
        raise SampleError(f"study {key}: its json member calls itself {meta.key}")
    return meta


def write_index(
    url: str,
    shards: Sequence[Shard],
    samples: Sequence[Sample],
    versions: Mapping[str, str],
    history: History | None = None,
    tables: Mapping[str, bytes] | None = None,
) -> str:
    """Write ``samples.parquet`` and then ``manifest.json`` beside shards that already stand at `url`.

    Args:
        url: the dataset's folder.
        shards: in name order, from :func:`fm.data.verify.scan_shard`.
        samples: rows in shard order, their splits filled in.
        versions: versions of code, config and de-identification rules.
        history: of a dataset that came from another.
        tables: further Parquet files by name, written beside the shards (as :meth:`History.named` says) and named in
            the manifest by their SHA-256.

    Returns:
        The dataset id: a hash of shard contents, keys and splits; equal contents give equal ids, wherever they lie.

    Raises:
        DatasetError: no sample, a study that appears twice, a study without a split, or a patient in two splits.
    """
    rows = SampleTable.of(samples)
    if not len(rows) or _repeats(rows) or pc.any(pc.equal(rows.column("split"), "")).as_py():
        raise DatasetError(f"{url}: the index needs at least one study, each once and with a split")
    check_splits(url, rows)
    fs, root = open_store(url)
    table = rows.to_parquet()
    dataset_id = dataset_hash(shards, rows)
    history = history or History()
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "dataset_id": dataset_id,
        "shards": [asdict(shard) for shard in shards],
        "samples": {
            "file": history.samples,
            "rows": len(samples),
            "bytes": len(table),
            "sha256": hashlib.sha256(table).hexdigest(),
        },
        "versions": dict(versions),
    }
    if history.parents:
        manifest |= {"parents": history.parents, "changes": history.changes}
    if tables:
        manifest["tables"] = {name: hashlib.sha256(payload).hexdigest() for name, payload in tables.items()}
        for name, payload in tables.items():
            publish(fs, f"{root}/{history.named(name)}", payload)
    publish(fs, f"{root}/{history.samples}", table)
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
    rows = SampleTable.of(samples)
    order = pa.array(rows.by_key)
    codes, words = rows.codes("split")
    splits = pa.array([json.dumps(word) for word in words], type=pa.string()).take(pa.array(codes)).take(order)
    # The same text as the JSON of a list of [key, split], put together by columns: a million rows take seconds else.
    pairs = pc.binary_join_element_wise('["', rows.column("key").take(order), '", ', splits, "]", "")
    listed = ", ".join(pairs.to_pylist())
    head = json.dumps({"shards": [[shard.name, shard.sha256, shard.samples] for shard in shards]})
    return hashlib.sha256(f'{head[:-1]}, "splits": [{listed}]}}'.encode()).hexdigest()[:32]


def check_splits(url: str, samples: SampleTable) -> None:
    """Refuse a patient whose studies are in more than one split: what is trained on may not be evaluated on.

    Studies left out as duplicates are in none.

    Raises:
        DatasetError: there is one; names the first.
    """
    codes, words = samples.codes("split")
    if LEFT_OUT in words:
        kept = codes != words.index(LEFT_OUT)
        samples, codes = SampleTable(samples.table.filter(pa.array(kept))), codes[kept]
    if len(np.unique(codes)) < 2:
        return
    patients = samples.column("patient").dictionary_encode()
    rows = np.asarray(patients.indices, dtype=np.int64)
    one = np.zeros(len(patients.dictionary), dtype=np.int64)
    one[rows] = codes
    if len(shared := np.unique(rows[codes != one[rows]])):
        raise DatasetError(
            f"{url}: {len(shared)} patient(s) have studies in more than one split, first "
            f"{min(patients.dictionary.take(pa.array(shared)).to_pylist())}: scores would be flattered; "
            "split by patient and make the index again"
        )


def _repeats(samples: SampleTable) -> bool:
    """Whether a study appears twice."""
    keys = samples.column("key").take(pa.array(samples.by_key))
    return len(samples) > 1 and bool(pc.any(pc.equal(keys[:-1], keys[1:])).as_py())


def _manifest_json(store: Store) -> dict[str, Any]:
    payload = _whole(store, MANIFEST)
    try:
        raw = json.loads(payload)
    except (ValueError, RecursionError):
        raise DatasetError(f"{store.url}/{MANIFEST} is not JSON; make the index again") from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        version = raw.get("format") if isinstance(raw, dict) else None
        raise DatasetError(f"{store.url}/{MANIFEST} has format {version!r}; this code reads format {FORMAT}")
    return raw


def _whole(store: Store, name: str) -> bytes:
    try:
        return store.whole(name)
    except DatasetError as err:
        if isinstance(err.__cause__, FileNotFoundError | NotADirectoryError):
            raise DatasetError(
                f"{store.url} holds no {name}: not a dataset, or fm prepare has not finished there"
            ) from None
        raise


def _check_counts(url: str, shards: Sequence[Shard], samples: SampleTable) -> None:
    odd = pc.invert(pc.match_substring_regex(samples.column("key"), f"^{STUDY_KEY.pattern}$"))
    if pc.any(odd).as_py():
        word = str(samples.column("key").filter(odd)[0].as_py())
        raise DatasetError(f"{url}/{SAMPLES}: study key {word[:80]!r} is not one")
    codes, words = samples.codes("shard")
    counts = dict(zip(words, np.bincount(codes, minlength=len(words)).tolist(), strict=True))
    if counts != {shard.name: shard.samples for shard in shards} or _repeats(samples):
        raise DatasetError(f"{url}: {MANIFEST} and {SAMPLES} count different studies; make the index again")
    for shard in shards:
        if not _SHARD.fullmatch(shard.name):
            raise DatasetError(f"{url}/{MANIFEST}: shard name {shard.name[:80]!r} is refused")


def _check_files(store: Store, shards: Sequence[Shard], samples: SampleTable) -> None:
    """Every shard is there and as long as the manifest says, and every member lies within its shard."""
    sizes = store.sizes()
    for shard in shards:
        where = f"{store.url}/{shard.name}"
        if shard.name not in sizes:
            raise DatasetError(f"{where}: missing; copy the dataset again or prepare it again")
        if sizes[shard.name] != shard.bytes:
            raise DatasetError(
                f"{where}: {sizes[shard.name]} bytes where the manifest says {shard.bytes}; run fm verify"
            )
    codes, words = samples.codes("shard")
    ends = {shard.name: shard.bytes for shard in shards}
    end = np.repeat(np.array([ends[word] for word in words], dtype=np.int64)[codes], samples.members_per_row)
    offset, length = (np.asarray(samples.members.field(name), dtype=np.int64) for name in ("offset", "length"))
    bad = (offset < 0) | (length < 0) | (offset > end) | (length > end - offset)
    if bad.any():
        row = int(np.searchsorted(np.cumsum(samples.members_per_row), int(bad.argmax()), side="right"))
        raise DatasetError(
            f"{store.url}/{SAMPLES}: study {samples[row].key} lies outside its shard; make the index again"
        )
