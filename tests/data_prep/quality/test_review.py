"""A small archive with a copied series, two sites and a poor series: tables, splits and the page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.prepare import prepare
from data_prep.summary import PrepareSummary
from data_prep.withdraw import withdraw
from evals.cohort import CohortError
from evals.embedding import read_cohort
from fm.config.prepare import Deface, Duplicates, PrepareConfig
from fm.config.quality import Action
from fm.data.index import LEFT_OUT, DatasetError, Manifest
from fm.data.verify import verify

from ..conftest import MakeSeries
from .defects import noisy
from .test_checks import phantom_head

STUDIES = 8


@pytest.fixture
def archive(make_series: MakeSeries, tmp_path: Path) -> Path:
    """Eight heads of eight patients; the last is the first saved again with noise, the third is nearly noise alone."""
    rng = np.random.default_rng(0)
    for number in range(STUDIES):
        values = phantom_head(number % (STUDIES - 1))
        if number == STUDIES - 1:
            values = noisy(values, rng, 25)
        if number == 2:
            values = noisy(values, rng, 3)
        place = ("Brookwater General", "Dunhaven Imaging")[number % 2]
        make_series(
            folder=f"in/{number}",
            volume=np.rint(values).astype(np.uint16),
            study=f"study {number}",
            patient=f"P{number}000",
            StudyDate=f"2020080{number + 1}",
            InstitutionName=place,
        )
    return tmp_path


def run(archive: Path, out: str = "out", **settings: Any) -> PrepareSummary:
    config = PrepareConfig(deface=Deface.none, key_file=str(archive / "key"), **settings)
    return prepare(str(archive / "in"), None, None, str(archive / out), config, 1)


def test_row_23_a_copy_is_reported_its_patients_share_a_split_and_the_page_shows_it(archive: Path) -> None:
    summary = run(archive, test_fraction=0.5)
    manifest = Manifest.open(str(archive / "out"))
    assert verify(str(archive / "out")).problems == []
    (pair,) = manifest.table("duplicates.parquet").to_pylist()  # type: ignore[union-attr]
    assert (pair["exact"], pair["same_patient"]) == (False, False) and pair["correlation"] > 0.9
    assert pair["split"] == pair["other_split"] == manifest.sample(pair["study"]).split
    assert summary.duplicates == {"exact": 0, "alike": 1, "across_patients": 1, "across_splits": 0, "left_out": 0}
    assert len(read_cohort(manifest).studies) == STUDIES
    series = manifest.table("series.parquet")
    assert series is not None and series.num_rows == STUDIES
    rows = {row["study"]: row for row in series.to_pylist()}
    flagged = [row for row in rows.values() if row["flags"]]
    assert len(flagged) == 1 and "low_snr" in flagged[0]["flags"] and flagged[0]["low_snr"] < 6
    assert summary.flags["low_snr"] == 1 and summary.flagged == 1
    assert len({row["site"] for row in rows.values()}) == 2
    for key, row in rows.items():
        stored = manifest.study(key).series[0]
        assert stored.statistics is not None and row["mean"] == stored.statistics.mean
    page = (archive / "out" / "qc.html").read_text("utf-8")
    assert "low_snr" in page and "two patients" in page and page.count('<img src="data:image/jpeg') >= STUDIES + 2
    assert not re.search(r"https?:|src=\"(?!data:)|@import|<script", page)
    for word in (str(archive), "Brookwater", "Dunhaven", "P2000", "20200803", "OKONKWO"):
        assert word not in page and word.encode() not in (archive / "out" / "series.parquet").read_bytes()


def test_duplicates_are_left_out_where_asked_and_the_index_stands(archive: Path) -> None:
    summary = run(archive, duplicates=Duplicates.drop, test_fraction=0.5)
    assert summary.splits["duplicate"] == summary.duplicates["left_out"] == 1
    manifest = Manifest.open(str(archive / "out"))
    assert len(read_cohort(manifest).studies) == STUDIES - 1


@pytest.mark.parametrize("rule", Duplicates)
def test_appended_studies_are_reviewed_with_those_that_stand(archive: Path, rule: Duplicates) -> None:
    """The first study is the copy here, so its key may come before or after that of the one that stands."""
    for name in ("0", "1"):
        shutil.move(archive / "in" / name, archive / name)
    run(archive, test_fraction=0.5, duplicates=rule)
    old = {sample.key: sample.split for sample in Manifest.open(str(archive / "out")).samples}
    for name in ("0", "1"):
        shutil.move(archive / name, archive / "in" / name)
    summary = run(archive, test_fraction=0.5, duplicates=rule)
    assert verify(str(archive / "out")).problems == []
    manifest = Manifest.open(str(archive / "out"))
    split = {sample.key: sample.split for sample in manifest.samples}
    assert len(old) == STUDIES - 2 and {key: split[key] for key in old} == old
    (pair,) = manifest.table("duplicates.parquet").to_pylist()  # type: ignore[union-attr]
    (new,), (standing,) = (
        {pair["study"], pair["other_study"]} - old.keys(),
        {pair["study"], pair["other_study"]} & old.keys(),
    )
    assert split[new] == (LEFT_OUT if rule is Duplicates.drop else split[standing])
    assert summary.duplicates["left_out"] == (rule is Duplicates.drop) and summary.duplicates["across_splits"] == 0
    assert sorted(manifest.table("series.parquet")["study"].to_pylist()) == sorted(split)  # type: ignore[index]
    page = (archive / "out" / "qc.html").read_text("utf-8")
    assert f"{STUDIES} of {STUDIES} studies" in page and manifest.dataset_id[:12] in page
    if rule is Duplicates.drop:
        withdraw(str(archive / "out"), manifest.sample(standing).patient, str(archive / "key"), "")
        manifest = Manifest.open(str(archive / "out"))
        assert manifest.sample(new).split == LEFT_OUT and manifest.table("duplicates.parquet").num_rows == 0  # type: ignore[union-attr]


def test_row_23_evaluation_refuses_a_copy_on_both_sides(archive: Path) -> None:
    """Dunhaven, which has the copy, is held out as external; its studies are then called the test split."""
    run(archive)
    manifest = Manifest.open(str(archive / "out"))
    (pair,) = manifest.table("duplicates.parquet").to_pylist()  # type: ignore[union-attr]
    manifest.samples = _moved(manifest, pair["study"], "train", pair["other_study"], "test")
    with pytest.raises(CohortError, match=r"1 volume\(s\) stand in both train and test, first in the studies"):
        read_cohort(manifest)


def _moved(manifest: Manifest, study: str, split: str, other: str, other_split: str) -> Any:
    rows = list(manifest.samples)
    for row in rows:
        row.split = {study: split, other: other_split}.get(row.key, row.split)
    return type(manifest.samples).of(rows)


def test_a_site_and_a_time_span_are_held_out(archive: Path) -> None:
    assert run(archive, external_sites=["Dunhaven Imaging"]).splits["external"] >= 4
    summary = run(archive, "later", external_after="20200805")
    assert summary.splits["later"] >= 4
    found = json.loads((archive / "later" / "prepare.json").read_text())
    assert "20200805" not in json.dumps(found)


def test_what_the_checks_refuse_is_shown_and_counted(archive: Path) -> None:
    summary = run(archive, actions={"low_snr": Action.quarantine})
    assert (summary.studies, summary.quarantined) == (STUDIES - 1, {"low_snr": 28})
    assert 'alt="quarantined for low_snr"' in (archive / "out" / "qc.html").read_text("utf-8")


def test_a_table_that_was_changed_is_refused(archive: Path) -> None:
    run(archive)
    path = archive / "out" / "duplicates.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    manifest = Manifest.open(str(archive / "out"))
    with pytest.raises(DatasetError, match=r"duplicates\.parquet is not the one"):
        manifest.table("duplicates.parquet")
    (problem,) = verify(str(archive / "out")).problems
    assert "duplicates.parquet" in problem
    assert manifest.table("nothing.parquet") is None
