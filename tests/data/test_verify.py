from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fm.data.index import DatasetError, Manifest, write_index
from fm.data.verify import scan_shard, verify

MakeDataset = Callable[..., str]


def tar(members: Sequence[tuple[str, bytes]], kind: bytes = tarfile.REGTYPE) -> io.BytesIO:
    """A tar with these members."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for name, payload in members:
            entry = tarfile.TarInfo(name)
            entry.size, entry.type = len(payload), kind
            file.addfile(entry, io.BytesIO(payload))
    stream.seek(0)
    return stream


def members_of(url: str, key: str) -> dict[str, bytes]:
    manifest = Manifest.open(url)
    return {name: manifest.read(key, name) for name in manifest.sample(key).members}


def reindex(url: str, samples: Sequence[tuple[str, dict[str, bytes]]]) -> None:
    """Put a single shard with these samples into a dataset, with an honest index."""
    for file in Path(url).iterdir():
        file.unlink()
    stream = tar([(f"{key}.{name}", payload) for key, members in samples for name, payload in members.items()])
    Path(url, "shard-000000.tar").write_bytes(stream.getvalue())
    shard, rows = scan_shard(stream, "shard-000000.tar")
    for row in rows:
        row.split = "train"
    write_index(url, [shard], rows, {})


def test_a_good_dataset_has_no_problems(make_dataset: MakeDataset) -> None:
    report = verify(make_dataset())
    assert (report.shards, report.studies, report.series, report.problems) == (2, 6, 6, [])


def test_row_25_a_flipped_byte_is_found(make_dataset: MakeDataset) -> None:
    url = make_dataset()
    where = Manifest.open(url).sample("k02").members["t1w.b2"]
    path = Path(url, "shard-000000.tar")
    payload = bytearray(path.read_bytes())
    payload[where.offset + where.length - 5] ^= 4
    path.write_bytes(bytes(payload))
    problems = verify(url).problems
    assert any("shard-000000.tar: its hash" in line for line in problems)
    assert all("shard-000001" not in line for line in problems)


def test_row_27_a_corrupt_tar_header_is_never_silent(make_dataset: MakeDataset) -> None:
    url = make_dataset()
    path = Path(url, "shard-000001.tar")
    payload = bytearray(path.read_bytes())
    payload[Manifest.open(url).sample("k11").members["json"].offset - 300] ^= 0xFF
    path.write_bytes(bytes(payload))
    assert any("shard-000001.tar" in line for line in verify(url).problems)


def test_voxels_that_do_not_fit_their_study_are_found(make_dataset: MakeDataset) -> None:
    url = make_dataset()
    good = members_of(url, "k00")
    raw = json.loads(bytes(good["json"]))
    raw["series"][0].update(shape=[4, 20, 29], foreground=[[0, 0, 0], [4, 20, 29]])
    reindex(url, [("k00", {**good, "json": json.dumps(raw).encode()})])
    assert verify(url).problems == [
        "shard-000000.tar: study k00: member t1w.b2 belongs to no series, or has another shape"
    ]


def test_row_27_and_28_missing_foreign_and_pickled_members_are_found(make_dataset: MakeDataset) -> None:
    url = make_dataset()
    good = members_of(url, "k00")
    for members, words in (
        ({"json": good["json"]}, "without voxels"),
        ({**good, "flair.b2": good["t1w.b2"]}, "belongs to no series"),
        ({**good, "t1w.b2": b"\x80\x04K\x01."}, "not a blosc2 frame"),
    ):
        reindex(url, [("k00", members)])
        (line,) = verify(url).problems
        assert words in line


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd.json",
        "../k.json",
        "k.pkl",
        "k.pyd",
        "K.json",
        "k.t1w.npy",
        "a/k.json",
        "k",
        "k.",
        "k.t1w.seg.x.b2",
        "pipe:cat k.json",
        "a.b.json",
        "a.b.t1w.b2",
        ".json",
    ],
)
def test_row_28_odd_member_names_are_refused(name: str) -> None:
    with pytest.raises(DatasetError, match="refuses member"):
        scan_shard(tar([(name, b"{}")]), "s.tar")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
def test_row_28_links_and_devices_are_refused(kind: bytes) -> None:
    with pytest.raises(DatasetError, match="refuses member"):
        scan_shard(tar([("k.json", b"")], kind), "s.tar")


def test_row_27_members_of_a_study_lie_together(make_dataset: MakeDataset) -> None:
    url = make_dataset()
    one, two = members_of(url, "k00"), members_of(url, "k01")
    mixed = [("k00.json", one["json"]), ("k01.json", two["json"]), ("k00.t1w.b2", one["t1w.b2"])]
    with pytest.raises(DatasetError, match="do not lie together"):
        scan_shard(tar(mixed), "s.tar")
    with pytest.raises(DatasetError, match="twice"):
        scan_shard(tar([("k00.json", one["json"])] * 2), "s.tar")
    with pytest.raises(DatasetError, match="no json member"):
        scan_shard(tar([("k00.t1w.b2", one["t1w.b2"])]), "s.tar")


def test_row_26_every_cut_shard_is_refused(make_dataset: MakeDataset) -> None:
    payload = Path(make_dataset(), "shard-000000.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(payload)) as shard:
        boundary = shard.getmembers()[2].offset
    for length in (0, 100, 512, boundary, boundary + 512, len(payload) - 10240):
        with pytest.raises(DatasetError):
            scan_shard(io.BytesIO(payload[:length]), "s.tar")
