"""A dataset that grows, and one that a patient leaves."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_prep import withdraw as withdrawal
from data_prep.beside import read_quarantine
from data_prep.keys import Keyring
from data_prep.quality.pictures import stored_thumbnail
from data_prep.withdraw import withdraw
from fm.config.errors import UserError
from fm.config.quality import Action, LimitsConfig
from fm.data.codec import decode_volume
from fm.data.index import Manifest
from fm.data.verify import verify

from ..test_no_identifiers import texts
from .conftest import STUDIES, MakeSeries, head, uid
from .test_prepare import contents, run, small_shards

KEY = f"{8:064x}"
"""Studies e and f come first and fourth under it: their shards hold others too."""


def keys(archive: Path, *names: str) -> set[str]:
    keyring = Keyring(bytes.fromhex((archive / "key").read_text()))
    return {keyring.study(uid(name)) for name in names}


def test_new_studies_are_appended_and_what_stands_stays(
    archive: Path, make_series: MakeSeries, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch)
    (archive / "later").mkdir()
    for name in "ef":
        shutil.move(archive / "in" / name, archive / "later" / name)
    first = run(archive, unknown_reports="allow")
    before = contents(archive / "out")
    old = Manifest.open(str(archive / "out"))
    for name in "ef":
        shutil.move(archive / "later" / name, archive / "in" / name)
    second = run(archive)
    after = contents(archive / "out")
    manifest = Manifest.open(str(archive / "out"))
    assert verify(str(archive / "out")).problems == []
    assert (first.studies, second.studies, second.used, second.files, second.reports) == (4, 6, 36, 36, 6)
    assert {name: after[name] for name in before if name.endswith(".tar")} == {
        name: payload for name, payload in before.items() if name.endswith(".tar")
    }
    assert manifest.dataset_id == second.dataset_id != first.dataset_id
    assert manifest.history.parents == [first.dataset_id]
    new = sorted(name for name in after if name.endswith(".tar") and name not in before)
    assert manifest.history.changes == [{"kind": "append", "studies": 2, "shards": new}]
    assert [(s.key, s.split) for s in manifest.samples if s.key in set(old.keys)] == [
        (s.key, s.split) for s in old.samples
    ], "nobody changes sides"
    tables = {f"{name}-1.parquet" for name in ("samples", "series", "duplicates")}
    beside = {"ledger-1.jsonl", "manifest.json", "prepare.json", "quarantine.jsonl", "qc.html"}
    assert set(after) == {*new, "shard-000000.tar", "shard-000001.tar"} | tables | beside
    assert run(archive) == second and contents(archive / "out") == after
    with pytest.raises(UserError, match="another key or other settings"):
        run(archive, quantisation_bits=8)
    make_series(folder="in/a2", study="a", series="more", patient="P0000", volume=head(seed=9))
    with pytest.raises(UserError, match="holds all studies of the input already, 1 of them from other files"):
        run(archive)
    assert contents(archive / "out") == after


def test_appending_is_a_pure_function_and_survives_a_kill(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_shards(monkeypatch)
    for name in "bcf":
        shutil.move(archive / "in" / name, archive / name)
    run(archive, unknown_reports="allow")
    for name in "bcf":
        shutil.move(archive / name, archive / "in" / name)
    shutil.copytree(archive / "out", archive / "spare")
    before = Manifest.open(str(archive / "out")).dataset_id
    with monkeypatch.context() as broken:
        broken.setattr("data_prep.publication.write_index", stop)
        with pytest.raises(InterruptedError):
            run(archive)
    assert Manifest.open(str(archive / "out")).dataset_id == before, "the old dataset stands until the new one is whole"
    assert verify(str(archive / "out")).problems == []
    run(archive)
    killed = contents(archive / "out")
    shutil.rmtree(archive / "out")
    shutil.move(archive / "spare", archive / "out")
    run(archive)
    assert contents(archive / "out") == killed


def stop(*_: object) -> None:
    raise InterruptedError


def leave_traces(archive: Path, make_series: MakeSeries) -> dict[str, Any]:
    """Give patient P4000 whatever else a dataset holds of one: a site of their own, a copy of another's volume, a
    refused series, a mask that is none, a report in two versions, labels of a series; returns the settings."""
    shutil.rmtree(archive / "in" / "f")
    alone = {"patient": "P4000", "InstitutionName": "Lonely Clinic"}
    for name in "ef":
        make_series(folder=f"in/{name}", study=name, volume=head(seed=4 if name == "e" else 0), **alone)
    make_series(folder="in/e2", study="e", series="coarse", volume=head(seed=8), PixelSpacing=["9", "9"], **alone)
    (archive / "masks").mkdir()
    (archive / "masks" / f"{uid('eseries')}.nii.gz").write_bytes(b"no mask")
    with (archive / "reports.csv").open("a") as file:
        file.write(f"{uid('e')},,P4000,FINDINGS: Lesion 4 again.\n")
    (archive / "labels.csv").write_text(f"study_uid,series_uid,lesion\n{uid('e')},{uid('eseries')},1\n{uid('a')},,1\n")
    return {
        "masks": str(archive / "masks"),
        "limits": LimitsConfig(coarse_voxels=6.0),
        "actions": {"coarse_voxels": Action.quarantine},
    }


def test_a_patient_is_withdrawn_from_every_file(
    archive: Path, make_series: MakeSeries, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(monkeypatch)
    settings = leave_traces(archive, make_series)
    prepared = run(archive, **settings)
    out = str(archive / "out")
    assert prepared.duplicates["exact"] == 1
    assert {"coarse_voxels", "mask_damaged", "report_superseded"} <= {e.reason for e in read_quarantine(out)}
    before = Manifest.open(out)
    gone = keys(archive, "e", "f")  # both of patient P4000
    (pseudonym,) = {sample.patient for sample in before.samples if sample.key in gone}
    (own,) = keys(archive, "e")  # what the other study shows stays where it was copied from
    payloads = {before.read(own, "t2w.b2")}
    items = [entry.item for entry in read_quarantine(out) if entry.study in gone]
    page = (archive / "out" / "qc.html").read_text("utf-8")
    shots = re.findall(r'src="(data:[^"]*)" [^>]*alt="quarantined', page)
    shots.append(stored_thumbnail(before.read(own, "t2w.b2"), before.study(own).series[0]))
    assert len(items) == 3 and len(shots) == 2 and all(shot in page for shot in shots)
    sites = {before.study(key).site for key in gone}
    held = sorted({sample.shard for sample in before.samples if sample.key in gone})
    files = contents(archive / "out")
    done = withdraw(out, "P4000", str(archive / "key"), "")
    after, left = Manifest.open(out), contents(archive / "out")
    assert (done.studies, done.shards, done.parent) == (2, held, prepared.dataset_id)
    assert verify(out).problems == []
    assert set(after.keys) == set(before.keys) - gone and after.dataset_id == done.dataset_id != before.dataset_id
    assert after.history.parents == [before.dataset_id]
    assert after.history.changes == [{"kind": "withdraw", "studies": 2, "shards": held}]
    assert [(s.key, s.split) for s in after.samples] == [(s.key, s.split) for s in before.samples if s.key not in gone]
    assert decode_volume(after.read(after.keys[0], "t2w.b2")).shape == (6, 48, 40)
    for name in set(files) - set(held):
        if name.endswith(".tar"):
            assert left[name] == files[name], "shards without the patient are not touched"
    summary = json.loads(left["prepare.json"])
    assert (summary["studies"], summary["patients"], summary["files"], summary["used"]) == (4, 4, 24, 24)
    assert (summary["quarantined"], summary["refused_masks"], summary["refused_reports"]) == ({}, {}, {})
    assert (summary["duplicates"]["exact"], after.table("duplicates.parquet").num_rows) == (0, 0)
    assert sorted(after.table("series.parquet")["study"].to_pylist()) == sorted(after.keys)
    uids = [uid(name) for name in ("e", "f", "eseries", "fseries", "ecoarse")]
    words = [*gone, *(key[:8] for key in gone), *items, *sites, *(site[:6] for site in sites), *uids]
    scan(archive, [*words, pseudonym, "P4000", "Lesion 4", "Lesion 5"], payloads | {shot.encode() for shot in shots})
    again = run(archive, **settings)
    assert again.dataset_id == done.dataset_id, "the archive still holds the patient: not taken in again"
    fresh = run(archive, "fresh", unknown_reports="allow", **settings)
    assert (fresh.excluded, fresh.quarantined, fresh.refused_masks) == ({"withdrawn": 18}, {}, {})
    assert [entry for entry in read_quarantine(str(archive / "fresh")) if entry.study] == []
    with pytest.raises(UserError, match=r"nobody in .* has this number"):
        withdraw(out, "P4000", str(archive / "key"), "")


def scan(archive: Path, words: list[str], payloads: set[bytes]) -> None:
    """Nothing of these in the dataset, nor beside the key but for the list of who withdrew."""
    found = [(place, word) for place, text in texts(archive / "out", ()) for word in words if word in text]
    assert found == []
    beside = [path for path in archive.glob("key*") if path.is_file() and path.name != "key-withdrawn.txt"]
    assert len(beside) == 3, "key, link table, catalogue"
    for path in [*beside, *(archive / "out").iterdir()]:
        content = path.read_bytes()
        assert not [word for word in words if word.encode() in content], path.name
        assert not any(payload in content for payload in payloads), path.name


@pytest.mark.parametrize(
    "point",
    [
        "write_index",
        pytest.param("publish_file", marks=pytest.mark.full),
        pytest.param("remove_others", marks=pytest.mark.full),
        pytest.param("write_link_table", marks=pytest.mark.full),
    ],
)
def test_an_interrupted_withdrawal_is_finished(archive: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    small_shards(monkeypatch)
    (archive / "key").write_text(KEY)
    (archive / "key").chmod(0o600)
    run(archive)
    out = str(archive / "out")
    with monkeypatch.context() as broken:
        broken.setattr(withdrawal, point, stop)
        with pytest.raises(InterruptedError):
            withdraw(out, "P4000", str(archive / "key"), "")
    assert verify(out).problems == [], "readable at every moment"
    with pytest.raises(UserError, match="a withdrawal from this output was interrupted"):
        run(archive)
    done = withdraw(out, "P4000", str(archive / "key"), "")
    assert (done.studies, done.dataset_id) == (2, Manifest.open(out).dataset_id)
    assert verify(out).problems == []
    scan(archive, [*keys(archive, "e", "f"), "P4000", *(uid(name) for name in "ef")], set())


def test_who_cannot_be_withdrawn(archive: Path) -> None:
    run(archive)
    out = str(archive / "out")
    with pytest.raises(UserError, match=r"nobody in .* has this number or pseudonym"):
        withdraw(out, "P7777", str(archive / "key"), "")
    with pytest.raises(UserError, match="no key there"):
        withdraw(out, "P4000", str(archive / "other"), "")
    assert not (archive / "other").exists()
    for number in range(4):
        withdraw(out, f"P{number}000", str(archive / "key"), "")
    with pytest.raises(UserError, match="holds no other patient: remove the whole folder"):
        withdraw(out, "P4000", str(archive / "key"), "")


def test_the_link_table_keeps_the_others(archive: Path) -> None:
    summary = run(archive)
    withdraw(str(archive / "out"), "P0000", str(archive / "key"), "")
    with Path(summary.link_table).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["source"] for row in rows if row["kind"] == "study"} == {uid(name) for name in STUDIES[1:]}
