"""Reading shards with suspicion: every byte hashed, every name checked, every member decoded.

:func:`scan_shard` is also how shards get their index, so what is indexed has been read back from disk.
"""

from __future__ import annotations

import hashlib
import io
import random
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import BinaryIO

from fm.data.codec import CodecError, decode_volume, read_header
from fm.data.index import DatasetError, Manifest, Member, Sample, Shard, open_store
from fm.data.sample import SampleError, StudyMeta, from_json

_MEMBER = re.compile(r"([a-z0-9_]+)\.(json|[a-z0-9_]+\.b2|[a-z0-9_]+\.seg\.b2)")


@dataclass(kw_only=True, slots=True)
class VerifyReport:
    """What :func:`verify` found."""

    dataset_id: str
    shards: int
    studies: int
    series: int
    bytes: int
    problems: list[str] = field(default_factory=list)
    """One line each, naming shard and study; empty where all is well."""


def verify(url: str, crops: int = 0) -> VerifyReport:
    """Read every byte of a dataset: shard hashes, sizes and counts, CRCs, JSON members, and every voxel.

    Args:
        url: the dataset's folder.
        crops: random crops of each series that are decoded in place of every voxel; 0 decodes all.

    Raises:
        DatasetError: no dataset at `url`, or an index that contradicts itself; faults inside shards are reported.
    """
    manifest = Manifest.open(url)
    report = VerifyReport(dataset_id=manifest.dataset_id, shards=len(manifest.shards), studies=0, series=0, bytes=0)
    fs, root = open_store(url)
    for shard in manifest.shards:
        expected = [sample for sample in manifest.samples if sample.shard == shard.name]
        with fs.open(f"{root}/{shard.name}", "rb") as stream:
            payload = stream.read()
        report.bytes += len(payload)
        try:
            found, samples = scan_shard(io.BytesIO(payload), shard.name)
        except DatasetError as err:
            report.problems.append(str(err))
            continue
        if found != shard:
            report.problems.append(f"{shard.name}: its hash, size or count is not what the manifest says")
        if [(s.key, s.members, s.patient) for s in samples] != [(s.key, s.members, s.patient) for s in expected]:
            report.problems.append(f"{shard.name}: its studies or members are not those of the index")
        for sample in samples:
            report.studies += 1
            report.series += _check_study(payload, sample, report.problems, crops)
    for name in manifest.tables:
        try:
            manifest.table(name)
        except DatasetError as err:
            report.problems.append(str(err))
    return report


def _check_study(payload: bytes, sample: Sample, problems: list[str], crops: int) -> int:
    """Decode every series of a study, or crops of it; returns how many there are."""
    where = f"{sample.shard}: study {sample.key}"
    blobs = {name: payload[m.offset : m.offset + m.length] for name, m in sample.members.items()}
    try:
        meta: StudyMeta = from_json(blobs.pop("json"))
        if meta.key != sample.key:
            raise SampleError(f"its json member calls itself {meta.key}")
        shapes = {f"{series.name}.b2": series.shape for series in meta.series}
        if missing := sorted(set(shapes) - set(blobs)):
            raise SampleError(f"series without voxels: {missing}")
        for name, blob in blobs.items():
            volume = name.removesuffix(".seg.b2") + ".b2" if name.endswith(".seg.b2") else name
            if read_header(blob).shape != shapes.get(volume):
                raise SampleError(f"member {name} belongs to no series, or has another shape")
            for box in _boxes(shapes[volume], crops, zlib.crc32(f"{sample.key}.{name}".encode())):
                decode_volume(blob, box)
    except (SampleError, CodecError) as err:
        problems.append(f"{where}: {err}")
        return 0
    return len(meta.series)


def _boxes(shape: tuple[int, int, int], crops: int, seed: int) -> Iterator[tuple[slice, slice, slice] | None]:
    """What of a volume is decoded: all of it, or random boxes of half its edges, the same every time."""
    if not crops:
        yield None
        return
    numbers = random.Random(seed)
    for _ in range(crops):
        sizes = [max(1, n // 2) for n in shape]
        starts = [numbers.randint(0, n - size) for n, size in zip(shape, sizes, strict=True)]
        d, h, w = (slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
        yield d, h, w


def scan_shard(stream: BinaryIO, name: str) -> tuple[Shard, list[Sample]]:
    """Index one shard: walk its tar headers, check every name, and read the patient, region and labels of each study.

    Raises:
        DatasetError: not a plain shard: a damaged header, a link or folder, an absolute or odd name, members of a study
            that do not lie together, a study without its JSON, or a JSON member that breaks the contract.
    """
    digest = hashlib.sha256()
    size = 0
    for block in iter(lambda: stream.read(1 << 20), b""):
        digest.update(block)
        size += len(block)
    stream.seek(0)
    samples: list[Sample] = []
    seen: set[str] = set()
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for entry in tar:
                key, extension = _split_name(entry, name)
                if not samples or samples[-1].key != key:
                    if key in seen:
                        raise DatasetError(f"{name}: members of study {key} do not lie together")
                    seen.add(key)
                    samples.append(Sample(key=key, patient="", split="", region="", shard=name, members={}))
                payload = tar.extractfile(entry)
                data = payload.read() if payload is not None else b""
                if extension in samples[-1].members or len(data) != entry.size:
                    raise DatasetError(f"{name}: member {entry.name} is cut short or appears twice")
                samples[-1].members[extension] = Member(entry.offset_data, entry.size, zlib.crc32(data))
                if extension == "json":
                    meta = from_json(data)
                    samples[-1] = replace(samples[-1], patient=meta.patient, region=meta.region, labels=meta.labels)
    except (tarfile.TarError, EOFError) as err:
        raise DatasetError(f"{name}: not a whole tar file ({err})") from err
    except SampleError as err:
        raise DatasetError(f"{name}: {err}") from err
    _check_tail(stream, size, samples, name)
    return Shard(name=name, sha256=digest.hexdigest(), bytes=size, samples=len(samples)), samples


def _split_name(entry: tarfile.TarInfo, shard: str) -> tuple[str, str]:
    found = _MEMBER.fullmatch(entry.name)
    if not entry.isreg() or found is None:
        raise DatasetError(
            f"{shard}: refuses member {entry.name[:80]!r}: only <study>.json and <study>.<series>.b2 fit"
        )
    return found.group(1), found.group(2)


def _check_tail(stream: BinaryIO, size: int, samples: Sequence[Sample], name: str) -> None:
    """A tar reader stops without a word at a damaged header: only zeros may follow the last member."""
    for sample in samples:
        if "json" not in sample.members:
            raise DatasetError(f"{name}: study {sample.key} has no json member")
    end = max((m.offset + m.length for s in samples for m in s.members.values()), default=0)
    stream.seek(end)
    tail = stream.read()
    if not samples or len(tail) < 1024 or any(tail):
        raise DatasetError(f"{name}: {size} bytes, damaged or cut short after {len(samples)} studies")
