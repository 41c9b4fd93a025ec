"""Which of several reports of a study counts, and how addenda and several accession numbers become one text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from data_prep.keys import Keyring
from data_prep.ledger import Entry, Reason
from data_prep.reports.inputs import ReportRow, Status
from data_prep.tables import Linked, StudyFinder
from fm.config.prepare import ReportRule

ADDENDUM = "\n\nADDENDUM:\n"


def link_reports(
    rows: Iterable[ReportRow],
    finder: StudyFinder,
    keyring: Keyring,
    rule: ReportRule,
) -> Linked:
    """Find each report's study by UID, else by accession number, and settle which of a study's reports counts.

    A report that is damaged, of another patient, of no study, of several, of an unknown status, void, or replaced by
    another is quarantined with its reason.
    """
    linked = Linked()
    by_study: dict[str, list[ReportRow]] = {}
    items: dict[int, str] = {}
    for row in rows:
        linked.rows += 1
        items[row.number] = item = keyring.item("report", str(row.number), row.study_uid, row.accession)
        linked.sources.append((item, "report", row.source))
        uid, reason = finder.find(row.study_uid, row.accession, row.patient_id)
        if not row.readable:
            reason = Reason.REPORT_DAMAGED
        elif reason is None and row.status in (None, Status.VOID):
            reason = Reason.REPORT_STATUS if row.status is None else Reason.REPORT_VOID
        if reason is not None:
            if reason is Reason.REPORT_UNKNOWN_STUDY:
                linked.unknown_rows.append(row.number)
            study = keyring.study(uid) if uid else ""
            linked.entries.append(Entry(item=item, kind="report", reason=reason, study=study))
            continue
        by_study.setdefault(uid, []).append(row)
    for uid, found in by_study.items():
        kept = current(found, sorted({header.identity.accession for header in finder.studies[uid]} - {""}), rule)
        numbers = {row.number for row in kept}
        for row in found:
            if row.number not in numbers:
                entry = Entry(item=items[row.number], kind="report", reason=_why(row, kept), study=keyring.study(uid))
                linked.entries.append(entry)
        if kept:
            linked.by_study[uid], linked.items[uid] = {"text": join(kept)}, items[kept[0].number]
    return linked


def current(rows: Sequence[ReportRow], accessions: Sequence[str], rule: ReportRule) -> list[ReportRow]:
    """The versions of one study's reports that count, in the order in which they are joined.

    Args:
        rows: every version, in the order of the input.
        accessions: accession numbers of the study; under several, each has a report of its own.
        rule: which version counts.
    """
    if rule is ReportRule.last:
        return [rows[-1]]
    groups: dict[str, list[ReportRow]] = {}
    for row in rows:
        several = len(accessions) > 1 and row.accession in accessions
        groups.setdefault(row.accession if several else "", []).append(row)
    kept = [found for _, group in sorted(groups.items()) if (found := _version(group, rule))]
    timed = all(row.time for found in kept for row in found)
    kept.sort(key=lambda found: found[0].time if timed else found[0].number)
    return [row for found in kept for row in found]


def join(rows: Sequence[ReportRow]) -> str:
    """One text of the versions that count; addenda under a heading of their own."""
    text = rows[0].text
    for row in rows[1:]:
        text += (ADDENDUM if row.status is Status.ADDENDUM else "\n\n") + row.text
    return text


def _version(rows: Sequence[ReportRow], rule: ReportRule) -> list[ReportRow]:
    """The version of one report that counts, and its addenda."""
    timed = all(row.time for row in rows)
    ordered = sorted(rows, key=lambda row: (row.time if timed else "", row.number))
    final = [k for k, row in enumerate(ordered) if row.status is Status.FINAL]
    early = [k for k, row in enumerate(ordered) if row.status is Status.PRELIMINARY]
    base = final or ([] if rule is ReportRule.final_only else early)
    after = base[-1] if base else len(ordered) if early else -1
    addenda = [row for k, row in enumerate(ordered) if row.status is Status.ADDENDUM and k > after]
    return [*([ordered[base[-1]]] if base else []), *addenda]


def _why(row: ReportRow, kept: Sequence[ReportRow]) -> Reason:
    return Reason.REPORT_SUPERSEDED if kept else Reason.REPORT_PRELIMINARY
