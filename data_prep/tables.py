"""Reports and labels files, linked to the studies of the inventory."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.headers import Header
from data_prep.keys import Keyring
from data_prep.ledger import Entry, Reason
from data_prep.persons import Persons
from fm.config.errors import UserError
from fm.data.sample import LabelValue

_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.+-]{0,79}")
_MAX_FIELD = 2**27


@dataclass(kw_only=True, slots=True)
class Linked:
    """Rows of one table that belong to studies, and those that do not."""

    by_study: dict[str, dict[str, str]] = field(default_factory=dict)
    """StudyInstanceUID to the row."""
    items: dict[str, str] = field(default_factory=dict)
    """StudyInstanceUID to the keyed id of its row."""
    entries: list[Entry] = field(default_factory=list)
    unknown_rows: list[int] = field(default_factory=list)
    """Numbers (from 1, after the heading) of rows whose study is not in the input."""
    rows: int = 0


def read_table(path: str, what: str, needs: Sequence[str]) -> Iterator[dict[str, str]]:
    """Rows of a CSV (comma, semicolon or tab) or JSONL file; bytes that are not UTF-8 become surrogates.

    Raises:
        UserError: the file is missing, unreadable, or lacks study_uid and accession, or a column of `needs`.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as err:
        raise UserError(f"{what}={path} cannot be read: {err.strerror}") from None
    rows = (
        _json_rows(text, path, what) if path.endswith((".jsonl", ".ndjson", ".json")) else _csv_rows(text, path, what)
    )
    for number, row in enumerate(rows, 1):
        if not {"study_uid", "accession"} & row.keys() or any(name not in row for name in needs):
            wanted = ", ".join(["study_uid or accession", *needs])
            raise UserError(
                f"{what}={path}, row {number}: needs the columns {wanted}; it has {', '.join(sorted(row)[:8])}"
            )
        yield row


def link(
    rows: Iterator[dict[str, str]],
    studies: Mapping[str, Sequence[Header]],
    keyring: Keyring,
    kind: str,
    persons: Persons | None = None,
) -> Linked:
    """Find each row's study by UID, else by accession number, and check that the patient is the study's.

    A row of another patient, one whose accession number fits several studies, and an earlier row for the same study
    are quarantined; a later row counts as the corrected one.
    """
    persons = persons or Persons()
    accessions: dict[str, list[str]] = {}
    for uid, headers in studies.items():
        for accession in {header.identity.accession for header in headers} - {""}:
            accessions.setdefault(accession, []).append(uid)
    linked = Linked()
    for number, row in enumerate(rows, 1):
        linked.rows += 1
        item = keyring.item(kind, str(number), row.get("study_uid", ""), row.get("accession", ""))
        uid = row.get("study_uid", "").strip()
        if uid not in studies:
            found = [] if uid else accessions.get(row.get("accession", "").strip(), [])
            if len(found) > 1:
                linked.entries.append(Entry(item=item, kind=kind, reason=Reason.REPORT_AMBIGUOUS))
                continue
            if not found:
                linked.unknown_rows.append(number)
                linked.entries.append(Entry(item=item, kind=kind, reason=Reason.REPORT_UNKNOWN_STUDY))
                continue
            uid = found[0]
        study = keyring.study(uid)
        if not persons.same(row.get("patient_id", ""), studies[uid]):
            linked.entries.append(Entry(item=item, kind=kind, reason=Reason.REPORT_OTHER_PATIENT, study=study))
            continue
        if uid in linked.by_study:
            older = linked.items[uid]
            linked.entries.append(Entry(item=older, kind=kind, reason=Reason.REPORT_SUPERSEDED, study=study))
        linked.by_study[uid], linked.items[uid] = row, item
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
    """SHA-256 of a file; '' for none."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path is not None else ""


def _label(cell: str) -> LabelValue | None:
    if re.fullmatch(r"[+-]?\d{1,9}", cell):
        return int(cell)
    if re.fullmatch(r"[+-]?(\d{1,12}\.\d*|\.\d+|\d{1,12})([eE][+-]?\d{1,3})?", cell):
        number = float(cell)
        return number if math.isfinite(number) else None
    return cell if _WORD.fullmatch(cell) else None


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
