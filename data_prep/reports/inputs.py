"""Reports as hospitals export them, row by row: tables, one text file per study, DICOM structured reports."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from data_prep.reports.structured import is_structured_report, read_structured_report
from data_prep.sources import walk
from data_prep.tables import read_table
from fm.config.errors import UserError
from fm.config.prepare import ReportSource

_UID = re.compile(r"[0-9]+(\.[0-9]+){3,}")
_YEAR_FIRST = re.compile(r"(19|20)\d{6}")
_TEXTS = (".txt", ".text")


class Status(Enum):
    """Standing of one version of a report."""

    FINAL = "final"
    PRELIMINARY = "preliminary"
    ADDENDUM = "addendum"
    VOID = "void"


_STATUS = {
    word: status
    for status, words in (
        (Status.FINAL, " f final finalised finalized complete completed signed verified approved authenticated c "
         "corrected correction amended revised"),
        (Status.PRELIMINARY, "p preliminary prelim draft interim partial unverified unsigned dictated transcribed r"),
        (Status.ADDENDUM, "a addendum addended addenda supplement supplementary"),
        (Status.VOID, "x d w cancelled canceled deleted void withdrawn retracted wrong error"),
    )
    for word in words.split(" ")
}  # fmt: skip
"""Words for a status, HL7's letters (table 0085) among them; '' counts as final."""


@dataclass(kw_only=True, slots=True)
class ReportRow:
    """One version of a report."""

    number: int
    """Place in the input, from 1."""
    source: str
    """Row or file, for the table beside the key."""
    study_uid: str = ""
    accession: str = ""
    patient_id: str = ""
    text: str = ""
    status: Status | None = Status.FINAL
    """None: a word that is not known."""
    time: str = ""
    """Digits, year first; '' where unknown."""
    readable: bool = True


def read_reports(path: str, source: ReportSource, columns: Mapping[str, str]) -> Iterator[ReportRow]:
    """Every version of every report of an input.

    Raises:
        UserError: it cannot be read, holds no report, or a row lacks what it needs or tells its time otherwise than
            with the year first.
    """
    kind = _kind(path) if source is ReportSource.auto else source
    if kind is not ReportSource.table and not os.path.isdir(path):
        raise UserError(f"reports={path} is no folder; prepare.report_source={kind} takes a folder")
    rows = {ReportSource.text: _texts, ReportSource.sr: _structured}.get(kind)
    count = 0
    for row in _table(path, columns) if rows is None else rows(path):
        count += 1
        yield row
    if not count and rows is not None:
        what = "text file (.txt)" if kind is ReportSource.text else "DICOM structured report"
        raise UserError(f"reports={path} holds no {what}; see prepare.report_source for other kinds")


def _kind(path: str) -> ReportSource:
    if not os.path.isdir(path):
        return ReportSource.table
    texts = any(name.lower().endswith(_TEXTS) for name in _files(path))
    return ReportSource.text if texts else ReportSource.sr


def _table(path: str, columns: Mapping[str, str]) -> Iterator[ReportRow]:
    for number, row in enumerate(read_table(path, "reports", ("patient_id", "text"), columns), 1):
        where = f"reports={path}, row {number}"
        yield _row(number, f"row {number} of {os.path.basename(path)}", where, row)


def _texts(folder: str) -> Iterator[ReportRow]:
    """One file per report: its name is the accession number or the StudyInstanceUID."""
    names = sorted(name for name in _files(folder) if name.lower().endswith(_TEXTS))
    for number, name in enumerate(names, 1):
        stem = Path(name).stem
        study = bool(_UID.fullmatch(stem))
        row = ReportRow(number=number, source=name, study_uid=stem if study else "", accession="" if study else stem)
        try:
            row.text = Path(name).read_bytes().decode("utf-8-sig", "surrogateescape")
        except OSError:
            row.readable = False
        yield row


def _files(folder: str) -> Iterator[str]:
    """Readable files below a folder."""
    return (one.path for one in walk(folder) if one.problem is None)


def _structured(folder: str) -> Iterator[ReportRow]:
    names = (name for name in _files(folder) if is_structured_report(name))
    for number, name in enumerate(names, 1):
        try:
            row = read_structured_report(name)
        except ValueError:
            yield ReportRow(number=number, source=name, readable=False)
            continue
        if row is not None:
            yield _row(number, name, f"reports={folder}, structured report {number}", row)


def _row(number: int, source: str, where: str, row: Mapping[str, str]) -> ReportRow:
    time = re.sub(r"\D", "", row.get("time", ""))
    if time and not _YEAR_FIRST.match(time):
        raise UserError(f"{where}: its time must begin with the year, as 2020-08-12T14:30 or 20200812143000")
    return ReportRow(
        number=number,
        source=source,
        study_uid=row.get("study_uid", "").strip(),
        accession=row.get("accession", "").strip(),
        patient_id=row.get("patient_id", ""),
        text=row["text"],
        status=_STATUS.get(row.get("status", "").strip().lower()),
        time=time,
    )
