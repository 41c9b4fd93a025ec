"""The whole preparation: accounts, resumption, refusals; rows 18, 19, 22 and 24 of the fault battery."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import webdataset
from pydicom.data import get_testdata_file

from data_prep import shards
from data_prep.prepare import prepare
from data_prep.summary import PrepareSummary
from fm.config.errors import UserError
from fm.config.prepare import Deface, PrepareConfig
from fm.data.codec import decode_volume
from fm.data.index import Manifest
from fm.data.verify import verify

from .conftest import STUDIES, edit, uid


def run(archive: Path, out: str = "out", workers: int = 1, **settings: object) -> PrepareSummary:
    config = PrepareConfig(deface=Deface.none, key_file=str(archive / "key"), **settings)  # type: ignore[arg-type]
    reports, labels = str(archive / "reports.csv"), str(archive / "labels.csv")
    return prepare(str(archive / "in"), reports, labels, str(archive / out), config, workers)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_archive_becomes_a_dataset(archive: Path) -> None:
    shutil.copy(str(get_testdata_file("MR_truncated.dcm")), archive / "in" / "broken.dcm")
    shutil.copy(str(get_testdata_file("reportsi.dcm")), archive / "in" / "report.dcm")
    (archive / "in" / "notes.txt").write_text("not an image")
    summary = run(archive)
    assert (summary.files, summary.used) == (39, 36)
    assert summary.excluded == {"non_dicom": 1, "structured_report": 1}
    assert summary.quarantined == {"truncated": 1}
    assert summary.files == summary.used + sum(summary.excluded.values()) + sum(summary.quarantined.values())
    assert (summary.studies, summary.patients, summary.series, summary.volumes, summary.members) == (6, 5, 6, 6, 6)
    assert (summary.reports, summary.labelled, summary.contrasts) == (6, 6, {"t2w": 6})
    assert summary.splits == {"train": 5, "test": 1} or summary.splits == {"train": 4, "test": 2}
    out = archive / "out"
    assert verify(str(out)).problems == []
    assert sorted(p.name for p in out.iterdir()) == [
        "duplicates.parquet",
        "ledger.jsonl",
        "manifest.json",
        "prepare.json",
        "qc.html",
        "quarantine.jsonl",
        "samples.parquet",
        "series.parquet",
        "shard-000000.tar",
    ]
    manifest = Manifest.open(str(out))
    assert manifest.dataset_id == summary.dataset_id
    (line,) = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert (line["kind"], line["reason"], line["files"]) == ("file", "truncated", 1)
    with Path(summary.link_table).open(newline="") as file:
        table = {row["id"]: row["source"] for row in csv.DictReader(file)}
    assert table[line["item"]].endswith("in/broken.dcm")
    assert sorted(table[key] for key in manifest.keys) == sorted(uid(name) for name in STUDIES)
    for key in manifest.keys:
        number = [uid(name) for name in STUDIES].index(table[key])
        study = manifest.study(key)
        assert study.report is not None
        assert study.report.findings == f"Lesion {number}, [removed]."
        assert study.labels == manifest.sample(key).labels == {"lesion": number % 2, "lesion_side": "left"}
        assert decode_volume(manifest.read(key, "t2w.b2")).shape == (6, 48, 40)


def test_a_patient_is_in_one_split(archive: Path) -> None:
    run(archive, test_fraction=0.4)
    split: dict[str, set[str]] = {}
    samples = Manifest.open(str(archive / "out")).samples
    for sample in samples:
        split.setdefault(sample.patient, set()).add(sample.split)
    assert all(len(where) == 1 for where in split.values())
    assert sum("test" in where for where in split.values()) == 2


def test_a_plain_webdataset_reader_iterates_the_shards(archive: Path) -> None:
    summary = run(archive, shard_mib=1)
    urls = [str(path) for path in sorted((archive / "out").glob("*.tar"))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert len(found) == summary.studies
    assert all(set(sample) >= {"__key__", "json", "t2w.b2"} for sample in found)


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.full)])
def test_the_same_input_and_key_give_the_same_bytes_for_any_number_of_workers(
    archive: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    small_shards(monkeypatch)
    one = run(archive, "one", workers=1)
    assert run(archive, "many", workers=workers).dataset_id == one.dataset_id
    assert contents(archive / "one") == contents(archive / "many")


def test_run_again_returns_at_once_and_other_settings_are_refused(archive: Path) -> None:
    first = run(archive)
    before = contents(archive / "out")
    assert run(archive) == first
    assert contents(archive / "out") == before
    with pytest.raises(UserError, match="holds another dataset"):
        run(archive, quantisation_bits=8)


def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard for every two studies."""
    monkeypatch.setattr(shards.ShardBuilder, "shard_bytes", property(lambda _: 20_000, lambda *_: None), raising=False)


def test_row_22_killed_in_the_middle_of_a_shard(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(monkeypatch)
    run(archive, "whole")
    whole = contents(archive / "whole")
    assert len([name for name in whole if name.endswith(".tar")]) == 3
    (archive / "kill.py").write_text(KILLED)
    key, out = archive / "key", archive / "out"
    command = [sys.executable, str(archive / "kill.py"), str(archive), str(key), str(out), "1"]
    process = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    left = {path.name for path in out.rglob("*") if path.is_file()}
    assert "shard-000000.tar" in left and "manifest.json" not in left and "shard.tmp" in left
    first = (out / "shard-000000.tar").stat().st_mtime_ns
    run(archive)
    assert contents(out) == whole
    assert (out / "shard-000000.tar").stat().st_mtime_ns == first, "a finished shard is not made again"


PREPARE = """
import os, resource, signal, sys
sys.path.insert(0, os.getcwd())
from pathlib import Path
from data_prep import shards
from data_prep.prepare import prepare
from fm.config.errors import UserError
from fm.config.prepare import Deface, PrepareConfig

if __name__ == "__main__":
    folder, key, out = map(Path, sys.argv[1:4])
    shards.ShardBuilder.shard_bytes = property(lambda _: 20_000, lambda *_: None)
    {fault}
    tables = (str(folder / "reports.csv"), str(folder / "labels.csv"))
    try:
        config = PrepareConfig(deface=Deface.none, key_file=str(key))
        prepare(str(folder / "in"), *tables, str(out), config, int(sys.argv[4]))
    except UserError as err:
        sys.exit(str(err))
"""
KILLED = PREPARE.replace(
    "{fault}",
    """add, count = shards.ShardBuilder.add, []
    def counted(self, result, source):
        count.append(add(self, result, source))
        if len(count) == 3:
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    shards.ShardBuilder.add = counted""",
)
LIMITED = PREPARE.replace(
    "{fault}",
    """limit = int(sys.argv[5])
    shards.ShardBuilder.shard_bytes = property(lambda self: 10**9 if self.store.shards else 20_000, lambda *_: None)
    init = shards.ShardBuilder.__init__
    def limited(self, *args):  # once the headers are read
        init(self, *args)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    shards.ShardBuilder.__init__ = limited""",
)


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.full)])
def test_row_24_a_file_that_may_grow_no_further(archive: Path, monkeypatch: pytest.MonkeyPatch, workers: str) -> None:
    """The kernel refuses the write, as it does on a full disk: the first shard stands, and the run goes on later."""
    small_shards(monkeypatch)
    run(archive, "whole")
    first = (archive / "whole" / "shard-000000.tar").read_bytes()
    (archive / "limited.py").write_text(LIMITED)
    command = [sys.executable, str(archive / "limited.py"), str(archive), str(archive / "key"), str(archive / "out")]
    command += [workers, str(len(first) + 4096)]
    process = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, check=False)
    assert process.returncode == 1, process.stderr
    said = process.stderr.decode().strip()
    assert "the disk is full while writing" in said and "1 finished shards are kept" in said and "\n" not in said
    assert "Traceback" not in said
    assert not (archive / "out" / "manifest.json").exists()
    assert (archive / "out" / "shard-000000.tar").read_bytes() == first
    run(archive)
    assert contents(archive / "out") == contents(archive / "whole")


def test_row_24_disk_full(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(monkeypatch)
    run(archive, "whole")
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"the disk is full while writing .*out: 1 finished shards are kept"):
        run(archive)
    monkeypatch.setattr(os, "fsync", real)
    assert not (archive / "out" / "manifest.json").exists()
    run(archive)
    assert contents(archive / "out") == contents(archive / "whole")


def test_a_changed_input_starts_afresh(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(monkeypatch)
    with monkeypatch.context() as broken:
        broken.setattr("data_prep.prepare.publish_dataset", _stop)
        with pytest.raises(InterruptedError):
            run(archive)
    shutil.rmtree(archive / "in" / "c")
    assert run(archive, unknown_reports="allow").studies == 5
    assert verify(str(archive / "out")).problems == []


def _stop(*_: object) -> None:
    raise InterruptedError


def test_a_damaged_finished_shard_is_made_again(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(monkeypatch)
    run(archive, "whole")
    with monkeypatch.context() as broken:
        broken.setattr("data_prep.prepare.publish_dataset", _stop)
        with pytest.raises(InterruptedError):
            run(archive)
    shard = archive / "out" / "shard-000001.tar"
    payload = bytearray(shard.read_bytes())
    payload[5000] ^= 1
    shard.write_bytes(bytes(payload))
    run(archive)
    assert contents(archive / "out") == contents(archive / "whole")


def test_a_missing_reports_file_is_one_clear_line(archive: Path) -> None:
    (archive / "reports.csv").unlink()
    with pytest.raises(UserError, match=r"reports=.*does not exist"):
        run(archive)


def test_a_report_for_an_unknown_study_fails_after_the_work(archive: Path) -> None:
    with (archive / "reports.csv").open("a") as file:
        file.write("1.2.3,,P1,Normal brain.\n")
    for _ in range(2):
        with pytest.raises(UserError, match=r"1 of the reports name a study .*row 7.*is finished without them"):
            run(archive)
        assert len(Manifest.open(str(archive / "out"))) == 6
    assert run(archive, unknown_reports="allow").unknown_reports == [7]


def test_nothing_usable_is_one_clear_line_and_leaves_the_quarantine(archive: Path) -> None:
    for path in (archive / "in").rglob("*.dcm"):
        edit(path, PixelSpacing=None)
    with pytest.raises(UserError, match="nothing could be prepared: 36 files are quarantined"):
        run(archive)
    lines = [json.loads(line) for line in (archive / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["no_geometry"] * 6


def test_row_18_odd_folders(archive: Path) -> None:
    folder = archive / "in"
    (folder / "loop").symlink_to(folder)
    (folder / "dangling.dcm").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.dcm")
    many = folder / "many"
    many.mkdir()
    for number in range(10_000):
        (many / f"{number}.txt").write_text("x")
    summary = run(archive)
    assert summary.excluded == {"non_dicom": 10_000, "not_a_file": 1}
    assert summary.quarantined == {"unreadable": 1}
    assert summary.used == 36


def test_row_21_reports_that_cannot_be_used_leave_their_study_with_images_alone(archive: Path) -> None:
    """Empty, not UTF-8, a megabyte, of another patient, missing, and a good one: by rule, and the counts reconcile."""
    texts = [b"", b"Normal \xff\xfe brain.", b"x" * 1_000_000, b"Normal brain.", None, b"FINDINGS: Normal brain."]
    rows = [b"study_uid,patient_id,text"]
    for number, (name, text) in enumerate(zip(STUDIES, texts, strict=True)):
        patient = "P9999" if number == 3 else f"P{min(number, 4)}000"
        if text is not None:
            rows.append(f"{uid(name)},{patient},".encode() + text)
    (archive / "reports.csv").write_bytes(b"\n".join(rows) + b"\n")
    summary = run(archive)
    assert (summary.studies, summary.reports, summary.used) == (6, 1, 36)
    wanted = ("report_empty", "report_not_utf8", "report_too_long", "report_other_patient")
    assert summary.refused_reports == dict.fromkeys(sorted(wanted), 1)
    lines = [json.loads(line) for line in (archive / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"report"} and len(lines) + summary.reports == len(rows) - 1
    manifest = Manifest.open(str(archive / "out"))
    reports = [manifest.study(key).report for key in manifest.keys]
    assert [report.findings for report in reports if report is not None] == ["Normal brain."]


def test_object_storage_gets_the_same_dataset(archive: Path) -> None:
    local = run(archive)
    config = PrepareConfig(deface=Deface.none, key_file=str(archive / "key"))
    tables = (str(archive / "reports.csv"), str(archive / "labels.csv"))
    remote = prepare(str(archive / "in"), *tables, "memory://bucket/prepared", config, 1)
    assert remote.dataset_id == local.dataset_id == Manifest.open("memory://bucket/prepared").dataset_id
    assert verify("memory://bucket/prepared").problems == []
