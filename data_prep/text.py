"""Reports to de-identified sections.

Two nets: every identifier of this patient's own headers (names in any order and accent, numbers, institutions, dates in
the usual ways of writing), then patterns that need no header (dates, times, phones, mail, record numbers, titled
names). What is found becomes ``[removed]``. A report in which a known identifier survives is not passed on.
"""

from __future__ import annotations

import datetime as dt
import re
import unicodedata
from collections.abc import Iterable, Sequence

from data_prep.headers import Identity
from data_prep.ledger import QuarantineError, Reason
from fm.data.sample import Report

REMOVED = "[removed]"

_SECTIONS = (
    ("impression", r"impression|conclusion|summary|opinion|diagnosis|assessment|beurteilung"),
    ("findings", r"findings?|description|report|result|body|befund"),
    ("technique", r"technique|protocol|procedure|sequences?|method|examination|exam|study|technik"),
    (
        "history",
        r"history|clinical(?: (?:history|information|details|question|indication))?|indication|reason(?: for \w+)?",
    ),
    (
        "dropped",
        r"comparison|compared with|signed|reported by|dictated by|cc|patient|name|mrn|dob|accession|date|referr\w+",
    ),
)
_HEADING = re.compile(
    r"(?im)(?:^[ \t*#]*|(?<=[.!?]\s))(?P<word>"
    + "|".join(f"(?P<{name}>{words})" for name, words in _SECTIONS)
    + r")[ \t*]*(?::|\n|$|[-–] )"
)
_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?)"
)
_NAME = r"(?:[A-ZÀ-ÖØ-ÞĀ-Ž][\w'’.-]*)"
_PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?i)[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
        r"(?i)\b(?:https?://|www\.)\S+",
        r"\b\d{4}[-/.]\d{1,2}[-/.]\d{1,2}\b",
        r"\b\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d{2})\b",
        rf"(?i)\b\d{{1,2}}(?:st|nd|rd|th)?[\s.-]*(?:of\s+)?{_MONTH}\b[\s.,-]*(?:(?:19|20)\d\d\b)?",
        rf"(?i)\b{_MONTH}\.?\s+\d{{1,2}}(?:st|nd|rd|th)?\b(?:,?\s*(?:19|20)\d\d\b)?",
        rf"(?i)\b{_MONTH}\.?,?\s+(?:19|20)\d\d\b",
        r"(?i)\b(?:in|from|since|of|dated?|year|prior|previous|study|exam|mri|ct)\s+((?:19|20)\d\d)\b(?!\s*(?:ms|mm|ml|cm|hz))",
        r"(?i)\b\d{1,2}[:.]\d{2}(?::\d{2})?\s*(?:h\b|hrs?\b|am\b|pm\b|uhr\b|o'clock)",
        r"\b(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?\b",
        r"(?i)\b(?:tel|phone|fax|pager|bleep|call|ext|extension|mobile|contact)\b[\s.:#]*\+?\d[\d\s()./-]{2,}\d",
        r"\+\d[\d\s()./-]{6,}\d|\(\d{2,5}\)\s*\d[\d\s-]{4,}\d|\b\d{3}[-. ]\d{3}[-. ]\d{4}\b|\b0\d{2,4}[-/ ]\d{4,}\b",
        r"(?i)\b(?:mrn|m\.r\.n\.|patient\s*(?:id|no|number)|hospital\s*(?:no|number)|nhs\s*(?:no|number)?|acc(?:ession)?"
        r"\s*(?:no|number|#)?|case\s*(?:no|number)|id|record\s*(?:no|number))\b[\s.:#]*(?=[\w/-]*\d)[\w/-]{3,}",
        r"\b\d{6,}\b|\b\d{3}-\d{2}-\d{4}\b",
        r"\b(?=[A-Z0-9-]*\d{3})(?=[A-Z0-9-]*[A-Z]{2})[A-Z][A-Z0-9-]{5,}\b",
        rf"\b(?:Drs?|Prof|Professor|Doctor|Mrs|Mr|Ms|Miss|Mx|Herr|Frau|Sir|Sister|Nurse)\b\.?(?:\s+(?:Dr|Prof|med)\b\.?)*"
        rf"\s+{_NAME}(?:[ -]+(?:(?:van|von|der|de|la|di|al|el)\s+)*{_NAME}){{0,3}}",
        # "dr" in any case; "mr" and "ms" in capitals or small letters are magnetic resonance and multiple sclerosis
        r"(?i)\b(?:dr|prof|professor|mrs)\b\.?\s+(?!\[)[^\W\d_][\w'’-]*(?:\s+[^\W\d_][\w'’-]*)?",
        rf"(?i:\b(?:reported|dictated|signed|read|reviewed|approved|verified|authori[sz]ed|discussed|transcribed|typed)"
        rf"(?:\s+\w+)?\s+(?:by|with|to))\s*:?\s+{_NAME}(?:[ -]+{_NAME}){{0,3}}",
        rf"\b{_NAME}(?:\s+{_NAME}){{0,2}},?\s+(?:MD|M\.D\.|FRCR|FRANZCR|PhD|MBBS|consultant radiologist)\b",
    )
)
_EVERYDAY = frozenset(
    re.findall(
        r"\w+",
        """white black brown green gray grey young old long short small large may june april august march summer winter
        day baker parkinson bell hill wood stone field rice rose bush banks west north south east good best low high
        strong sharp little moore major minor head hand foot back neck love hope grace joy mark will art case cook price
        page reading marsh park rivers brook lane bridge church king knight bishop pope hunter fisher potter mason
        cooper smith mass left right normal axial lake ball bone burns cross ford frost glass hall keen lamb noble power
        ray sage swan tongue ward wise bowel crane hernia virchow robin schwann barrett graves addison cushing chiari
        rathke""",
    )
)
"""Surnames that are also words of reports: removed only where they are written as names."""
_SIGNATURE = re.compile(r"(?im)^\W*(?:electronically|digitally|\[removed\] by telephone)?\W*\[removed\][\W\d]*$\n?")
"""A line that held nothing but a signature: it says which hospital wrote the report, and no more."""
_TITLES = r"(?:Drs?|Prof|Professor|Doctor|Mrs|Mr|Ms|Miss|Mx|Herr|Frau|patient|name|by|for|re)\b\.?:?\s+"
_SPECIAL = str.maketrans({"ø": "o", "ł": "l", "ğ": "g", "ß": "ss", "ı": "i", "æ": "ae", "œ": "oe", "đ": "d"})


def clean_report(text: str, identity: Sequence[Identity], max_chars: int) -> Report:
    """De-identify a report and part it into sections.

    Args:
        text: the report as exported.
        identity: the identities of every series of the study.
        max_chars: longest report that is taken.

    Raises:
        QuarantineError: empty, not UTF-8, too long, or an identifier survived.
    """
    if not text.strip():
        raise QuarantineError(Reason.REPORT_EMPTY)
    if len(text) > max_chars:
        raise QuarantineError(Reason.REPORT_TOO_LONG)
    if any(0xD800 <= ord(c) <= 0xDFFF for c in text) or "\ufffd" in text or "\0" in text:
        raise QuarantineError(Reason.REPORT_NOT_UTF8)
    plain = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    known = _known_patterns(identity)
    parts = {name: scrub(body, known) for name, body in sections(plain).items()}
    report = Report(**parts)
    folded = _fold("\n".join(parts.values()))
    if any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", folded) for word in _must_not_survive(identity)):
        raise QuarantineError(Reason.REPORT_RESIDUAL)
    if not report.diagnostic.replace(REMOVED, "").strip():
        raise QuarantineError(Reason.REPORT_EMPTY)
    return report


def sections(text: str) -> dict[str, str]:
    """Part a report at its headings into findings, impression, technique and history.

    Text before the first heading, or without any, is findings unless findings has a heading of its own; comparisons,
    signatures and header blocks are dropped.
    """
    parts: dict[str, list[str]] = {"findings": [], "impression": [], "technique": [], "history": []}
    found = list(_HEADING.finditer(text))
    preamble = text[: found[0].start()] if found else text
    ends = [heading.start() for heading in found[1:]] + [len(text)]
    for heading, end in zip(found, ends, strict=False):
        name = next(name for name, _ in _SECTIONS if heading.group(name) is not None)
        body = text[heading.end() : end].strip()
        if name in parts and body:
            parts[name].append(body)
    if preamble.strip() and not parts["findings"]:
        parts["findings"].append(preamble.strip())
    return {name: "\n".join(bodies) for name, bodies in parts.items()}


def scrub(text: str, known: Iterable[re.Pattern[str]]) -> str:
    """Replace identifiers by ``[removed]``; runs of them become one, and spaces are evened out."""
    for pattern in (*known, *_PATTERNS):
        text = pattern.sub(REMOVED, text)
    text = re.sub(r"\[removed\](?:[\s,;/^-]*\[removed\])+", REMOVED, text)
    text = re.sub(r"(?i)\b(?:drs?|prof|professor|doctor)\b\.?\s*(?=\[removed\])", "", text)
    text = _SIGNATURE.sub("", text)
    return re.sub(r"[ \t]+", " ", text).strip()


def _known_patterns(identity: Sequence[Identity]) -> list[re.Pattern[str]]:
    """Patterns of this study's own identifiers, longest first; letters match with or without their accents."""
    exact: set[str] = set()
    names: set[str] = set()
    for one in identity:
        exact.update(word for word in (*one.numbers, *one.places) if len(word) >= 3)
        exact.update(written for date in one.dates for written in _written_dates(date))
        names.update(_name_parts(one.people))
    patterns = [_loose(word) for word in sorted(exact, key=len, reverse=True)]
    safe = sorted((word for word in names if _fold(word) not in _EVERYDAY), key=len, reverse=True)
    patterns += [_loose(word) for word in safe]
    for word in sorted(names - set(safe)):
        # A surname that is also a word goes only where it is written as a name
        capital = re.escape(word.capitalize())
        patterns.append(re.compile(rf"(?<=\[removed\])[\s,]+{capital}\b|\b{capital}[\s,]+(?=\[removed\])"))
        patterns.append(re.compile(rf"\b{_TITLES}{capital}\b|\b{re.escape(word.upper())}\b"))
    return patterns


def _must_not_survive(identity: Sequence[Identity]) -> set[str]:
    """Folded identifiers that may not be left: names that are no words, and numbers."""
    names = {_fold(word) for one in identity for word in _name_parts(one.people)} - _EVERYDAY
    numbers = {_fold(word) for one in identity for word in one.numbers if len(word) >= 4}
    return {word for word in names | numbers if len(word) >= 3}


def _name_parts(people: Iterable[str]) -> set[str]:
    parts = (part for person in people for part in re.split(r"[\^=,\s.]+", person))
    return {part.strip("'’-_*()") for part in parts if len(part.strip("'’-_*()")) >= 2 and not part.isdigit()}


def _written_dates(date: str) -> set[str]:
    """The usual ways to write a DICOM date, the bare eight digits among them."""
    try:
        day = dt.date(int(date[:4]), int(date[4:6]), int(date[6:8]))
    except ValueError:
        return set()
    two, one = f"{day.day:02d}", str(day.day)
    months = (f"{day.month:02d}", str(day.month))
    written = {date[:8]}
    for year in (f"{day.year:04d}", f"{day.year % 100:02d}"):
        for separator in "-/. ":
            for d in (two, one):
                for m in months:
                    written |= {separator.join(p) for p in ((d, m, year), (m, d, year), (year, m, d))}
    for month in (day.strftime("%B"), day.strftime("%b")):
        for d in (two, one):
            written |= {f"{d} {month} {day.year}", f"{d}-{month}-{day.year}", f"{month} {d}, {day.year}"}
    return written


def _loose(word: str) -> re.Pattern[str]:
    """Match a word whatever its case, accents and inner spaces; umlauts also as two letters."""
    twin = {
        "ä": "(?:ä|ae|a)",
        "ö": "(?:ö|oe|o)",
        "ü": "(?:ü|ue|u)",
        "ø": "(?:ø|oe|o)",
        "å": "(?:å|aa|a)",
        "ß": "(?:ß|ss)",
    }
    pieces: list[str] = []
    for letter in word.casefold() if "ß" not in word else word.lower():
        plain = _fold(letter)
        if letter in twin:
            pieces.append(twin[letter])
        elif letter.isspace():
            pieces.append(r"\s+")
        elif plain != letter and plain:
            pieces.append(f"(?:{re.escape(letter)}|{re.escape(plain)})")
        else:
            pieces.append(re.escape(letter))
    return re.compile(rf"(?i)(?<!\w){''.join(pieces)}(?!\w)")


def _fold(text: str) -> str:
    """Lower case without accents."""
    spread = unicodedata.normalize("NFKD", text.lower().translate(_SPECIAL))
    return "".join(c for c in spread if not unicodedata.combining(c))
