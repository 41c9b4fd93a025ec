"""The header values that may leave, each typed and bounded; everything else of a header stays behind.

An allow-list: nothing is copied as text. Words are chosen from closed lists, numbers are parsed and range-checked.
"""

from __future__ import annotations

import datetime as dt
import re

from data_prep.headers import Identity, Scan

VERSION = "2"
"""Version of these rules and of the report scrubbing; recorded in the manifest."""
CONFIDENTIALITY_OPTIONS = "113100 113103 113105 113108 113111"
"""DICOM PS3.15 annex E as codes of PS3.16 CID 7050: the basic profile; graphics and descriptors cleaned (no overlay,
text or description is kept); age, sex and b-values of private elements retained. Pixels are refused, never cleaned."""

_VENDORS = (
    ("siemens", r"siemens"),
    ("ge", r"\bge\b|general electric"),
    ("philips", r"philips"),
    ("canon", r"canon|toshiba"),
    ("united_imaging", r"\buih\b|united imaging"),
    ("hitachi", r"hitachi|fujifilm"),
    ("hyperfine", r"hyperfine"),
    ("bruker", r"bruker"),
    ("esaote", r"esaote"),
)
_AGE = re.compile(r"(\d{1,3})([DWMY])")
_YEARS = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}
_OLDEST = 120


def vendor(scan: Scan) -> str | None:
    """Vendor word from a closed list; 'other' for any other text, None for none."""
    if not scan.vendor.strip():
        return None
    return next((word for word, pattern in _VENDORS if re.search(pattern, scan.vendor, re.IGNORECASE)), "other")


def sex(identity: Identity) -> str | None:
    """'f', 'm' or 'o'; None where absent or anything else."""
    word = identity.sex.strip().lower()
    return word if word in ("f", "m", "o") else None


def age(identity: Identity) -> float | str | None:
    """Age in years: whole from 2 to 89, one decimal under 2, '90+' above 89; None where unknown or a placeholder.

    Zero is believed only where the birth date, another than the study date, says so: ``000Y`` and ``0Y`` are what
    anonymisers write.
    """
    born, seen = _date(identity.birth_date), _date(identity.study_date)
    years = (seen - born).days / 365.25 if born is not None and seen is not None and seen > born else None
    found = _AGE.fullmatch(identity.age.strip().upper())
    if found is not None and int(found.group(1)) > 0:
        years = int(found.group(1)) * _YEARS[found.group(2)]
    if years is None or not 0 < years <= _OLDEST:
        return None
    if years >= 90:
        return "90+"
    return round(years, 1) if years < 2 else int(years + 1e-6)


def bounded(value: float | None, low: float, high: float) -> float | None:
    """A number inside its physical range, to six digits; None for anything else."""
    return float(f"{value:.6g}") if value is not None and low <= value <= high else None


def _date(text: str) -> dt.date | None:
    digits = text.strip()
    if not re.fullmatch(r"\d{8}", digits):
        return None
    try:
        return dt.date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return None
