"""Reports as tables, text files and structured reports, and which of several versions counts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian

from data_prep.exclusion import left_out
from data_prep.headers import Header
from data_prep.keys import Keyring
from data_prep.ledger import Reason, Rule
from data_prep.persons import Persons
from data_prep.reports.inputs import ReportRow, Status, read_reports
from data_prep.reports.text import sections
from data_prep.reports.versions import current, join, link_reports
from data_prep.tables import StudyFinder, read_table
from fm.config.errors import UserError
from fm.config.prepare import ReportRule, ReportSource

from ..conftest import MakeSeries, uid

AUTO = ReportSource.auto


def test_parquet_with_columns_of_other_names(tmp_path: Path) -> None:
    table = pa.table({"AccNo": [7001, 7002], "pid": ["P1", None], "Befund": ["Normal.", "Tumour."], "mm": [1.5, None]})
    pq.write_table(table, tmp_path / "r.parquet")
    columns = {"accession": "AccNo", "patient_id": "pid", "text": "Befund"}
    rows = list(read_reports(str(tmp_path / "r.parquet"), AUTO, columns))
    assert [(row.accession, row.patient_id, row.text) for row in rows] == [
        ("7001", "P1", "Normal."),
        ("7002", "", "Tumour."),
    ]
    assert rows[1].source == "row 2 of r.parquet"
    (first, _) = read_table(str(tmp_path / "r.parquet"), "labels", (), {"accession": "AccNo"})
    assert first["mm"] == "1.5"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p.write_bytes(b"PAR1 no more"), "is not a Parquet file"),
        (lambda p: pq.write_table(pa.table({"a": ["x"]}), p), "row 1: needs the columns study_uid or accession"),
        (lambda p: pq.write_table(pa.table({"accession": ["1"], "patient_id": [""], "text": ["x"],
                                            "time": ["12.08.2020 14:30"]}), p), "must begin with the year"),
    ],
)  # fmt: skip
def test_a_parquet_file_that_cannot_be_used_is_one_line(
    tmp_path: Path, make: Callable[[Path], None], words: str
) -> None:
    path = tmp_path / "r.parquet"
    make(path)
    with pytest.raises(UserError, match=words) as caught:
        list(read_reports(str(path), AUTO, {}))
    assert "\n" not in str(caught.value) and "12.08.2020" not in str(caught.value)


def test_text_files_are_named_by_accession_or_study(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "H16.txt").write_text("\ufeffFINDINGS: Normal.", encoding="utf-8")
    (tmp_path / "deep" / f"{uid('one')}.txt").write_bytes(b"Gro\xdfe L\xe4sion")
    (tmp_path / "notes.md").write_text("no report")
    found = {row.accession or row.study_uid: row for row in read_reports(str(tmp_path), AUTO, {})}
    assert set(found) == {"H16", uid("one")}
    assert found["H16"].text == "FINDINGS: Normal."
    assert "\udcdf" in found[uid("one")].text, "bytes that are not UTF-8 are kept apart, and refused later"


@pytest.mark.parametrize("source", [ReportSource.text, ReportSource.sr])
def test_a_folder_without_reports_is_one_line(tmp_path: Path, source: ReportSource) -> None:
    with pytest.raises(UserError, match=r"holds no (text file|DICOM structured report)"):
        list(read_reports(str(tmp_path), source, {}))
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(UserError, match=r"takes a folder"):
        list(read_reports(str(tmp_path / "a.csv"), source, {}))


def item(kind: str, name: str = "", **values: object) -> Dataset:
    """A content item; `name` is the meaning of its concept."""
    ds = Dataset()
    ds.RelationshipType, ds.ValueType = "CONTAINS", kind
    if name:
        ds.ConceptNameCodeSequence = Items([code(name)])
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def code(meaning: str, value: str = "1", scheme: str = "DCM") -> Dataset:
    ds = Dataset()
    ds.CodeMeaning, ds.CodeValue, ds.CodingSchemeDesignator = meaning, value, scheme
    return ds


def write_report(path: Path, study: str, text: str, sop: str = "33", time: str = "101500", **values: str) -> None:
    """A structured report with a person, a heading, findings with a measurement, and an impression."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = f"1.2.840.10008.5.1.4.1.1.88.{sop}"
    meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = uid(str(path)), ExplicitVRLittleEndian
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.Modality, ds.StudyInstanceUID, ds.SeriesInstanceUID = "SR", uid(study), uid(study + "sr")
    ds.PatientID, ds.ContentDate, ds.ContentTime = "P1234567", "20200812", time
    ds.CompletionFlag, ds.ValueType = "COMPLETE", "CONTAINER"
    measured = Dataset()
    measured.NumericValue, measured.MeasurementUnitsCodeSequence = "12", Items([code("millimetre", "mm")])
    observer = item("PNAME", "Person Observer Name", PersonName="THORNTON^RUPERT")
    observer.RelationshipType = "HAS OBS CONTEXT"
    findings = item("CONTAINER", "Findings")
    findings.ContentSequence = Items(
        [
            item("TEXT", TextValue="Zyste links, größer geworden."),
            item("NUM", "Diameter", MeasuredValueSequence=Items([measured])),
            item("CODE", "Lesion", ConceptCodeSequence=Items([code("Cyst", "367643001", "SCT")])),
        ]
    )
    ds.ContentSequence = Items([observer, findings, item("TEXT", "Impressions", TextValue=text)])
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize("sop", ["11", "22", "33"])
def test_structured_reports_become_sections(tmp_path: Path, sop: str) -> None:
    write_report(tmp_path / "a.dcm", "one", "Harmless cyst.", sop)
    assert left_out(pydicom.dcmread(tmp_path / "a.dcm")) is Rule.STRUCTURED_REPORT, "as an image it stays excluded"
    (row,) = read_reports(str(tmp_path), AUTO, {})
    assert (row.study_uid, row.patient_id, row.time) == (uid("one"), "P1234567", "20200812101500")
    parts = sections(row.text)
    assert parts["findings"] == "Zyste links, größer geworden.\nDiameter: 12 mm\nLesion: Cyst"
    assert parts["impression"] == "Harmless cyst."
    assert "THORNTON" not in row.text


def test_real_and_damaged_structured_reports(tmp_path: Path) -> None:
    """pydicom's basic text report, among an image, a dose report and one that is cut."""
    shutil.copy(str(get_testdata_file("reportsi.dcm")), tmp_path / "a.dcm")
    shutil.copy(str(get_testdata_file("MR_small.dcm")), tmp_path / "b.dcm")
    write_report(tmp_path / "c.dcm", "one", "x", sop="67")
    (tmp_path / "d.dcm").write_bytes((tmp_path / "a.dcm").read_bytes()[:900])
    real, damaged = read_reports(str(tmp_path), ReportSource.sr, {})
    assert (real.text, real.status) == ("Section Heading:\nReport Text:\nEnter text", Status.PRELIMINARY)
    assert real.study_uid == str(pydicom.dcmread(tmp_path / "a.dcm").StudyInstanceUID)
    assert not damaged.readable


def row(number: int, status: Status = Status.FINAL, accession: str = "", time: str = "", text: str = "") -> ReportRow:
    return ReportRow(number=number, source="", status=status, accession=accession, time=time, text=text or str(number))


F, P, A = Status.FINAL, Status.PRELIMINARY, Status.ADDENDUM
RULES = (
    ("the latest final wins", [row(1, P), row(2, F), row(3, F)], (), ReportRule.final, "3"),
    ("by time where all tell it", [row(1, F, time="2021"), row(2, F, time="2020")], (), ReportRule.final, "1"),
    ("by rows where one does not", [row(1, F, time="2021"), row(2, F)], (), ReportRule.final, "2"),
    ("a late preliminary changes nothing", [row(1, F), row(2, P)], (), ReportRule.final, "1"),
    ("addenda behind it, in order", [row(1, F), row(2, A), row(3, A)], (), ReportRule.final,
     "1\n\nADDENDUM:\n2\n\nADDENDUM:\n3"),
    ("a corrected one replaces its addenda", [row(1, F), row(2, A), row(3, F)], (), ReportRule.final, "3"),
    ("preliminary if nothing else", [row(1, P), row(2, P)], (), ReportRule.final, "2"),
    ("never preliminary", [row(1, P)], (), ReportRule.final_only, ""),
    ("an addendum alone", [row(1, A)], (), ReportRule.final_only, "1"),
    ("no addendum to what does not count", [row(1, P), row(2, A)], (), ReportRule.final_only, ""),
    ("two orders, two reports", [row(1, F, "A2"), row(2, P, "A1"), row(3, F, "A1"), row(4, A, "A2")], ("A1", "A2"),
     ReportRule.final, "1\n\nADDENDUM:\n4\n\n3"),
    ("one accession has versions", [row(1, F, "A1"), row(2, F)], ("A1",), ReportRule.final, "2"),
    ("the last row", [row(1, F), row(2, P)], ("A1",), ReportRule.last, "2"),
)  # fmt: skip


@pytest.mark.parametrize(("rows", "accessions", "rule", "text"), [r[1:] for r in RULES], ids=[r[0] for r in RULES])
def test_which_version_counts(rows: list[ReportRow], accessions: tuple[str, ...], rule: ReportRule, text: str) -> None:
    kept = current(rows, accessions, rule)
    assert (join(kept) if kept else "") == text


def test_an_addendum_is_part_of_the_impression() -> None:
    text = join([row(1, text="FINDINGS: Cyst.\nIMPRESSION: Cyst."), row(2, A, text="It is on the left.")])
    assert sections(text)["impression"] == "Cyst.\nIt is on the left."


def test_row_21_every_version_is_accounted_for(
    make_series: MakeSeries, read: Callable[[Sequence[Path]], list[Header]], keyring: Keyring
) -> None:
    studies = {
        uid("one"): read(make_series(study="one", AccessionNumber="A1")[:1]),
        uid("two"): read(make_series(folder="in/b", study="two", patient="Q9", AccessionNumber="A2")[:1]),
    }
    rows = [
        ReportRow(number=1, source="f1", accession="A1", status=Status.PRELIMINARY, text="early"),
        ReportRow(number=2, source="f2", accession="A1", text="late"),
        ReportRow(number=3, source="f3", accession="A1", status=Status.VOID, text="wrong"),
        ReportRow(number=4, source="f4", accession="A1", status=None, text="?"),
        ReportRow(number=5, source="f5", accession="A2", status=Status.PRELIMINARY, text="early"),
        ReportRow(number=6, source="f6", accession="A9", text="of nobody"),
        ReportRow(number=7, source="f7", accession="A2", patient_id="P1", text="of another"),
        ReportRow(number=8, source="f8", readable=False),
    ]
    linked = link_reports(rows, StudyFinder(studies, Persons()), keyring, ReportRule.final_only)
    assert {key: found["text"] for key, found in linked.by_study.items()} == {uid("one"): "late"}
    assert {entry.reason for entry in linked.entries} == {
        Reason.REPORT_SUPERSEDED, Reason.REPORT_VOID, Reason.REPORT_STATUS, Reason.REPORT_PRELIMINARY,
        Reason.REPORT_UNKNOWN_STUDY, Reason.REPORT_OTHER_PATIENT, Reason.REPORT_DAMAGED,
    }  # fmt: skip
    assert linked.rows == 8 == len(linked.by_study) + len(linked.entries)
    sources = {item: source for item, _, source in linked.sources}
    assert sorted(sources[entry.item] for entry in linked.entries) == ["f1", "f3", "f4", "f5", "f6", "f7", "f8"]
