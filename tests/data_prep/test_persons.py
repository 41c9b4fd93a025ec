"""One person under several numbers: row 20 of the fault battery."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from data_prep.headers import Header, HeaderReader
from data_prep.keys import Keyring
from data_prep.persons import read_persons
from data_prep.prepare import prepare
from data_prep.summary import PrepareSummary
from fm.config.errors import UserError
from fm.config.prepare import Deface, PrepareConfig
from fm.data.index import Manifest

from .conftest import MakeSeries, head, uid


def link_file(folder: Path, *rows: tuple[str, str, str]) -> str:
    path = folder / "links.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("issuer", "patient_id", "person"), *rows])
    return str(path)


def patients(out: Path, summary: PrepareSummary) -> dict[str, str]:
    """Pseudonym by StudyInstanceUID."""
    with Path(summary.link_table).open(newline="") as file:
        uids = {row["id"]: row["source"] for row in csv.DictReader(file) if row["kind"] == "study"}
    return {uids[sample.key]: sample.patient for sample in Manifest.open(str(out)).samples}


def test_row_20_one_patient_in_two_workers_runs_and_hospitals(make_series: MakeSeries, tmp_path: Path) -> None:
    """Same number at one hospital, another number at a second; two workers against one, and two runs."""
    small = head(depth=3, rows=24, columns=24)
    make_series(folder="in/a", study="a", patient="P1000", volume=small, IssuerOfPatientID="North")
    make_series(folder="in/b", study="b", patient="P1000", volume=small, IssuerOfPatientID="North")
    make_series(folder="in/c", study="c", patient="77-4", volume=small, IssuerOfPatientID="South")
    make_series(folder="in/d", study="d", patient="P1000", volume=small, IssuerOfPatientID="South")
    make_series(folder="in/e", study="e", patient="***", volume=small)
    make_series(folder="in/f", study="f", patient="***", volume=small)
    links = link_file(tmp_path, ("North", "P1000", "one"), ("South", "77-4", "one"))
    (tmp_path / "reports.csv").write_text(f"study_uid,patient_id,text\n{uid('c')},P1000,Normal brain.\n")
    found = []
    for name, workers, folder in (("one", 1, "in"), ("two", 2, "in"), ("three", 1, "in/c")):
        config = PrepareConfig(deface=Deface.none, key_file=str(tmp_path / "key"), link_file=links)
        reports = str(tmp_path / "reports.csv")
        summary = prepare(str(tmp_path / folder), reports, None, str(tmp_path / name), config, workers)
        assert summary.reports == 1, "a report under the person's other number is the person's"
        found.append((summary, patients(tmp_path / name, summary)))
    (first, one), (second, two), (_, three) = found
    assert one == two and first.dataset_id == second.dataset_id
    assert one[uid("a")] == one[uid("b")] == one[uid("c")] == three[uid("c")]
    assert len({one[uid(name)] for name in "adef"}) == 4, "another hospital's equal number and placeholders join nobody"
    assert (first.patients, first.linked_patients, first.placeholder_patients) == (4, 1, 2)
    assert "1 patients joined" in str(first) and "2 studies without a patient number" in str(first)
    versions = json.loads((tmp_path / "one" / "manifest.json").read_text())["versions"]
    assert versions["confidentiality_options"].split()[0] == "113100"
    assert "North" not in "".join(path.read_text("latin-1") for path in (tmp_path / "one").iterdir())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("issuer,patient_id\nA,P1\n", "needs the columns issuer, patient_id, person"),
        ("issuer,patient_id,person\nA,P1,x\nA,P1,y\n", "row 2: the same issuer and patient_id"),
        ("issuer,patient_id,person\nA,***,x\n", "row 1: person is empty, or patient_id is a placeholder"),
        ("issuer,patient_id,person\nA,P1,\n", "row 1: person is empty"),
    ],
)
def test_a_link_file_that_cannot_be_used_is_refused_without_naming_anyone(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "links.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read_persons(str(path), "")
    assert "P1" not in str(caught.value)


def test_numbers_without_an_issuer_belong_to_the_site(
    make_series: MakeSeries, tmp_path: Path, keyring: Keyring
) -> None:
    header = HeaderReader().read(str(make_series(patient="P1")[0]))
    assert isinstance(header, Header)
    links = link_file(tmp_path, ("here", "P1", "x"))
    assert read_persons(links, "here").pseudonym([header], keyring) == keyring.digest("person", "x")
    assert read_persons(links, "there").pseudonym([header], keyring) == keyring.patient("there", "P1", "")
    assert read_persons("", "there").pseudonym([header], keyring) == keyring.patient("there", "P1", "")
