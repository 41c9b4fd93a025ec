"""Linking of reports and labels: row 21 of the fault battery."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from data_prep.headers import Header
from data_prep.keys import Keyring
from data_prep.ledger import Reason
from data_prep.persons import Persons
from data_prep.tables import StudyFinder, label_values, link, read_table
from fm.config.errors import UserError

from .conftest import MakeSeries, uid

Studies = dict[str, list[Header]]


@pytest.fixture
def studies(make_series: MakeSeries, read: Callable[[Sequence[Path]], list[Header]]) -> Studies:
    """Two studies of two patients."""
    one = read(make_series(study="one", AccessionNumber="A1")[:1])
    two = read(make_series(folder="in/b", study="two", patient="Q9", AccessionNumber="A2")[:1])
    return {uid("one"): one, uid("two"): two}


def rows(*found: dict[str, str]) -> Iterator[dict[str, str]]:
    return iter(found)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.csv", 'study_uid,patient_id,text\n1.2,P1,"Line one,\nline two"\n'),
        ("r.csv", '\ufeffstudy_uid;patient_id;text\r\n1.2;P1;"Line one,\nline two"\r\n'),
        ("r.jsonl", '{"study_uid": "1.2", "patient_id": "P1", "text": "Line one,\\nline two"}\n\n'),
    ],
)
def test_formats(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    (row,) = read_table(str(path), "reports", ["patient_id", "text"])
    assert row == {"study_uid": "1.2", "patient_id": "P1", "text": "Line one,\nline two"}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("r.csv", "study,text\n1,x\n", "needs the columns study_uid or accession, patient_id, text"),
        ("r.csv", "study_uid,text\n1,x\n", "needs the columns"),
        ("r.jsonl", "not json\n", "line 1: not JSON"),
        ("r.jsonl", "[1]\n", "not a JSON object"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        list(read_table(str(path), "reports", ["patient_id", "text"]))


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        list(read_table(str(tmp_path / "none.csv"), "reports", []))


def test_rows_find_their_study_by_uid_or_accession(studies: Studies, keyring: Keyring) -> None:
    by_uid = {"study_uid": uid("one"), "patient_id": "P1234567", "text": "a"}
    by_accession = {"accession": "A2", "patient_id": "Q9", "text": "b"}
    linked = link(rows(by_uid, by_accession), StudyFinder(studies, Persons()), keyring)
    assert {key: row["text"] for key, row in linked.by_study.items()} == {uid("one"): "a", uid("two"): "b"}
    assert linked.entries == []


def test_row_21_what_does_not_fit_is_quarantined(studies: Studies, keyring: Keyring) -> None:
    found = (
        {"study_uid": uid("one"), "patient_id": "Q9", "text": "of the other patient"},
        {"study_uid": "1.2.3", "patient_id": "P1234567", "text": "unknown"},
        {"accession": "A1", "patient_id": "P1234567", "text": "first version"},
        {"study_uid": uid("one"), "patient_id": "", "text": "final version"},
    )
    linked = link(rows(*found), StudyFinder(studies, Persons()), keyring)
    assert [entry.reason for entry in linked.entries] == [
        Reason.REPORT_OTHER_PATIENT,
        Reason.REPORT_UNKNOWN_STUDY,
        Reason.REPORT_SUPERSEDED,
    ]
    assert linked.unknown_rows == [2]
    assert linked.by_study[uid("one")]["text"] == "final version"
    assert linked.rows == 4 == len(linked.by_study) + len(linked.entries)


def test_an_accession_of_two_studies_is_ambiguous(
    make_series: MakeSeries, read: Callable[[Sequence[Path]], list[Header]], keyring: Keyring
) -> None:
    both = {name: read(make_series(folder=name, study=name, AccessionNumber="SAME")[:1]) for name in ("a", "b")}
    linked = link(rows({"accession": "SAME", "patient_id": "", "text": "x"}), StudyFinder(both, Persons()), keyring)
    assert [entry.reason for entry in linked.entries] == [Reason.REPORT_AMBIGUOUS]


def test_labels_are_numbers_or_short_words() -> None:
    row = {
        "lesion": "1",
        "size": "12.5",
        "side": "left",
        "blank": " ",
        "findings": "tumour.left.frontal",
        "note": "Mrs Okonkwo said",
        "phone": "040 123 4567",
        "huge": "19368790193687901936879",
        "secret": "1",
    }
    allowed = ["lesion", "size", "side", "blank", "findings", "note", "phone", "huge", "absent"]
    labels, refused = label_values(row, allowed)
    assert labels == {"lesion": 1, "size": 12.5, "side": "left", "findings": "tumour.left.frontal"}
    assert isinstance(labels["lesion"], int)
    assert refused == 3
