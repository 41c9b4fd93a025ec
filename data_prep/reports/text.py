"""Reports to de-identified sections.

Two nets: every identifier of this patient's own headers (:mod:`.people`), then rules that need no header
(:mod:`.scrub`). What is found becomes ``[removed]``. A report in which a known identifier survives is not passed on.
What both nets miss is measured: docs/deidentification.md.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence

from data_prep.headers import Identity
from data_prep.ledger import QuarantineError, Reason
from data_prep.reports.models import names_left, remove_named
from data_prep.reports.people import REMOVED, known, survivors
from data_prep.reports.scrub import scrub
from fm.config.prepare import REPORT_SECTIONS
from fm.data.sample import Report

_SECTIONS = (
    ("impression", r"impressions?|conclusions?|summary|opinion|diagnosis|assessment|beurteilung|addend(?:um|a)"),
    ("findings", r"findings?|description|report|result|body|befund"),
    ("technique", r"technique|protocol|procedure|sequences?|method|examination|exam|study|technik"),
    (
        "history",
        r"history|clinical(?: (?:history|information|details|question|indication))?|indication|reason(?: for \w+)?",
    ),
    ("dropped", r"comparison|compared with"),
    ("field", r"signed|reported by|dictated by|cc|patient|name|mrn|dob|accession|date|referr\w+"),
)
_HEADING = re.compile(
    r"(?im)(?:^[ \t*#]*|(?<=[.!?]\s))(?P<word>"
    + "|".join(f"(?P<{name}>{words})" for name, words in _SECTIONS)
    + r")[ \t*]*(?::|\n|$|[-–] )"
)


def clean_report(
    text: str,
    identity: Sequence[Identity],
    max_chars: int,
    kept: Collection[str] = REPORT_SECTIONS,
    ner_model: str = "",
    ner_labels: Collection[str] = (),
) -> Report:
    """De-identify a report and part it into sections.

    Args:
        text: the report as exported.
        identity: the identities of every series of the study.
        max_chars: longest report that is taken.
        kept: sections that are passed on.
        ner_model: folder of a token classifier that goes over what the rules leave; '' for none.
        ner_labels: its entities that count; empty: all.

    Raises:
        QuarantineError: empty, not UTF-8, too long, or an identifier survived.
        UserError: the model cannot be loaded.
    """
    if not text.strip():
        raise QuarantineError(Reason.REPORT_EMPTY)
    if len(text) > max_chars:
        raise QuarantineError(Reason.REPORT_TOO_LONG)
    if any(0xD800 <= ord(c) <= 0xDFFF for c in text) or "\ufffd" in text or "\0" in text:
        raise QuarantineError(Reason.REPORT_NOT_UTF8)
    plain = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    found = known(identity)
    parts = {name: scrub(body, found) if name in kept else "" for name, body in sections(plain).items()}
    if ner_model:
        parts = {name: remove_named(body, ner_model, ner_labels) for name, body in parts.items()}
        if any(names_left(body, ner_model, ner_labels) for body in parts.values()):
            raise QuarantineError(Reason.REPORT_RESIDUAL)
    if survivors("\n".join(parts.values()), found):
        raise QuarantineError(Reason.REPORT_RESIDUAL)
    report = Report(**parts)
    if not report.diagnostic.replace(REMOVED, "").strip():
        raise QuarantineError(Reason.REPORT_EMPTY)
    return report


def sections(text: str) -> dict[str, str]:
    """Part a report at its headings into findings, impression, technique and history.

    Text before the first heading, or without any, is findings unless findings has a heading of its own. Comparisons
    are dropped, and so is every line that begins with the name of a field (patient, date, signature).
    """
    parts: dict[str, list[str]] = {"findings": [], "impression": [], "technique": [], "history": []}
    preamble: list[str] = []
    body, start = preamble, 0
    for heading in _HEADING.finditer(text):
        if heading.start() < start:
            continue
        name = next(name for name, _ in _SECTIONS if heading.group(name) is not None)
        line_start = text.rfind("\n", 0, heading.start()) + 1
        if name == "field" and text[line_start : heading.start()].strip(" \t*#"):
            continue
        body.append(text[start : heading.start()])
        start = heading.end()
        if name == "field":
            end = text.find("\n", heading.start("word"))
            start = max(len(text) if end < 0 else end, start)
        else:
            body = parts.get(name, [])
    body.append(text[start:])
    joined = {name: "\n".join(kept for piece in pieces if (kept := piece.strip())) for name, pieces in parts.items()}
    before = "\n".join(kept for piece in preamble if (kept := piece.strip()))
    if before and not joined["findings"]:
        joined["findings"] = before
    return joined
