"""Reports and labels files, linked to the studies of the inventory."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.headers import Header
from data_prep.keys import Keyring
from data_prep.ledger import Entry, Reason
from data_prep.persons import Persons
from data_prep.sources import walk
from fm.config.errors import UserError
from fm.data.sample import LabelValue

_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.+-]{0,79}")
_MAX_FIELD = 2**27


@dataclass(kw_only=True, slots=True)
class Linked:
    """Rows of one table that belong to studies, and those that do not."""

    by_study: dict[str, dict[str, str]] = field(default_factory=dict)
    """StudyInstanceUID to the row."""
    by_series: dict[str, dict[str, str]] = field(default_factory=dict)
    """SeriesInstanceUID to the row, of rows that name a series."""
    items: dict[str, str] = field(default_factory=dict)
    """StudyInstanceUID, or SeriesInstanceUID, to the keyed id of its row."""
    entries: list[Entry] = field(default_factory=list)
    unknown_rows: list[int] = field(default_factory=list)
    """Numbers (from 1, after the heading) of rows whose study is not in the input."""
    rows: int = 0
    sources: list[tuple[str, str, str]] = field(default_factory=list)
    """(keyed id, kind, where it stands) of every row, for the table beside the key."""


class StudyFinder:
    """Finds the study of a row by UID, else by accession number, and checks that the patient is the study's."""

    def __init__(self, studies: Mapping[str, Sequence[Header]], persons: Persons) -> None:
        self.studies = studies
        self.persons = persons

    @cached_property
    def accessions(self) -> dict[str, list[str]]:
        """Studies by accession number."""
        found: dict[str, list[str]] = {}
        for uid, headers in self.studies.items():
            for accession in {header.identity.accession for header in headers} - {""}:
                found.setdefault(accession, []).append(uid)
        return found

    @cached_property
    def study_of(self) -> dict[str, str]:
        """Study of each series."""
        return {header.series_uid: uid for uid, headers in self.studies.items() for header in headers}

    def find(self, study_uid: str, accession: str, patient_id: str) -> tuple[str, Reason | None]:
        """StudyInstanceUID of a row ('' where none fits), and why the row cannot be used (None: it can)."""
        uid = study_uid.strip()
        if uid not in self.studies:
            found = [] if uid else self.accessions.get(accession.strip(), [])
            if len(found) != 1:
                return "", Reason.REPORT_AMBIGUOUS if found else Reason.REPORT_UNKNOWN_STUDY
            uid = found[0]
        other = not self.persons.same(patient_id, self.studies[uid])
        return uid, Reason.REPORT_OTHER_PATIENT if other else None


def read_table(
    path: str, what: str, needs: Sequence[str], columns: Mapping[str, str] | None = None
) -> Iterator[dict[str, str]]:
    """Rows of a CSV (comma, semicolon or tab), JSONL or Parquet file; bytes that are not UTF-8 become surrogates.

    Args:
        path: the table.
        what: its key on the command line.
        needs: columns without which it is of no use.
        columns: what the table calls columns that we call otherwise, by our name.

    Raises:
        UserError: the file is missing, unreadable, or lacks study_uid and accession, or a column of `needs`.
    """
    ours = {theirs: name for name, theirs in (columns or {}).items()}
    for number, raw in enumerate(_rows(path, what), 1):
        row = {ours.get(name, name): cell for name, cell in raw.items()}
        if not {"study_uid", "series_uid", "accession"} & row.keys() or any(name not in row for name in needs):
            wanted = ", ".join(["study_uid or accession", *needs])
            raise UserError(
                f"{what}={path}, row {number}: needs the columns {wanted}; it has {', '.join(sorted(row)[:8])}"
            )
        yield row


def link(
    rows: Iterator[dict[str, str]],
    finder: StudyFinder,
    keyring: Keyring,
) -> Linked:
    """Find the study or, where a row names one, the series of each row of labels.

    A row of another patient, one whose accession number fits several studies, and an earlier row for the same study or
    series are quarantined; a later row counts as the corrected one.
    """
    linked = Linked()
    for number, row in enumerate(rows, 1):
        linked.rows += 1
        names = [row.get(name, "").strip() for name in ("study_uid", "accession", "series_uid")]
        item = keyring.item("label", str(number), *names[: 3 if names[2] else 2])
        linked.sources.append((item, "label", f"row {number}"))
        study_uid = finder.study_of.get(names[2], "?") if names[2] and not names[0] else names[0]
        uid, reason = finder.find(study_uid, names[1], row.get("patient_id", ""))
        if reason is None and names[2] and finder.study_of.get(names[2]) != uid:
            reason = Reason.REPORT_UNKNOWN_STUDY
        if reason is Reason.REPORT_UNKNOWN_STUDY:
            linked.unknown_rows.append(number)
        if reason is not None:
            study = keyring.study(uid) if uid else ""
            linked.entries.append(Entry(item=item, kind="label", reason=reason, study=study))
            continue
        place, key = (linked.by_series, names[2]) if names[2] else (linked.by_study, uid)
        if key in place:
            older = linked.items[key]
            entry = Entry(item=older, kind="label", reason=Reason.REPORT_SUPERSEDED, study=keyring.study(uid))
            linked.entries.append(entry)
        place[key], linked.items[key] = row, item
    return linked


def label_values(row: Mapping[str, str], allowed: Sequence[str]) -> tuple[dict[str, LabelValue], int]:
    """Typed labels of a row's allowed columns, and how many cells were refused.

    A cell is a number or one short word; blank is missing; free text is refused, since it could hold anything.
    """
    labels: dict[str, LabelValue] = {}
    refused = 0
    for name in allowed:
        cell = row.get(name, "").strip()
        value = _label(cell)
        if value is not None:
            labels[name] = value
        elif cell:
            refused += 1
    return labels, refused


def file_hash(path: str | None) -> str:
    """Hash of what an input holds: SHA-256 of a file's bytes, of names, sizes and times below a folder; '' for none."""
    if path is None or not os.path.isdir(path):
        return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path is not None else ""
    digest = hashlib.sha256()
    for one in walk(path):
        facts = f"{one.size}\0{one.stamp}" if one.problem is None else "?"
        digest.update(f"{one.name}\0{facts}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _label(cell: str) -> LabelValue | None:
    if re.fullmatch(r"[+-]?\d{1,9}", cell):
        return int(cell)
    if re.fullmatch(r"[+-]?(\d{1,12}\.\d*|\.\d+|\d{1,12})([eE][+-]?\d{1,3})?", cell):
        number = float(cell)
        return number if math.isfinite(number) else None
    return cell if _WORD.fullmatch(cell) else None


def _rows(path: str, what: str) -> Iterator[dict[str, str]]:
    try:
        if path.endswith((".parquet", ".pq")):
            yield from _parquet_rows(path)
            return
        text = Path(path).read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as err:
        raise UserError(f"{what}={path} cannot be read: {err.strerror or 'damaged'}") from None
    except pa.ArrowException:
        raise UserError(f"{what}={path} is not a Parquet file, or holds columns of neither text nor numbers") from None
    json_lines = path.endswith((".jsonl", ".ndjson", ".json"))
    yield from _json_rows(text, path, what) if json_lines else _csv_rows(text, path, what)


def _parquet_rows(path: str) -> Iterator[dict[str, str]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(1024):
            columns = [batch.column(k).cast(pa.string()).to_pylist() for k in range(batch.num_columns)]
            for cells in zip(*columns, strict=True):
                yield {name: cell or "" for name, cell in zip(batch.schema.names, cells, strict=True)}


def _csv_rows(text: str, path: str, what: str) -> Iterator[dict[str, str]]:
    heading = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=heading.count)
    csv.field_size_limit(_MAX_FIELD)
    try:
        for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter):
            yield {str(name).strip(): value or "" for name, value in row.items() if name is not None}
    except csv.Error as err:
        raise UserError(f"{what}={path} is not a CSV file: {err}") from None


def _json_rows(text: str, path: str, what: str) -> Iterator[dict[str, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{what}={path}, line {number}: not JSON; one object a line is needed") from None
        if not isinstance(row, dict):
            raise UserError(f"{what}={path}, line {number}: not a JSON object")
        yield {str(name): "" if value is None else str(value) for name, value in row.items()}
