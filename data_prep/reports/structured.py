"""DICOM structured reports as text: the content trees of basic, enhanced and comprehensive SR (PS3.3 A.35, C.17.3).

Names of persons, UIDs, dates and references in the tree are left where they are: only what a reader would dictate is
taken. The objects stay excluded as images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pydicom
from pydicom.dataset import Dataset

SR_CLASSES = frozenset(f"1.2.840.10008.5.1.4.1.1.88.{number}" for number in (11, 22, 33, 34))
"""Basic text, enhanced, comprehensive and comprehensive 3D; dose reports, CAD and key objects are no reports."""
_MARK = b"1.2.840.10008.5.1.4.1.1.88."
_DEEPEST = 50


def is_structured_report(path: str) -> bool:
    """Whether a file calls itself a structured report in its file meta information; nothing else of it is read."""
    try:
        with open(path, "rb") as file:
            start = file.read(1024)
    except OSError:
        return False
    return start[128:132] == b"DICM" and _MARK in start


def read_structured_report(path: str) -> dict[str, str] | None:
    """Text, status, time and study of one structured report; None where it is of a kind that holds no report.

    Raises:
        ValueError: the file is damaged, or nested beyond sense.
    """
    try:
        ds = pydicom.dcmread(path)
        if str(ds.get("SOPClassUID", "")) not in SR_CLASSES:
            return None
        if "ContentSequence" not in ds:  # pydicom reads a file that was cut between two elements without a word
            raise ValueError("no content")
        text = "\n".join(_lines(ds, 0)).strip()
        preliminary = str(ds.get("PreliminaryFlag", "")) == "PRELIMINARY" or str(ds.get("CompletionFlag")) == "PARTIAL"
        return {
            "study_uid": str(ds.get("StudyInstanceUID", "") or ""),
            "accession": str(ds.get("AccessionNumber", "") or ""),
            "patient_id": str(ds.get("PatientID", "") or ""),
            "text": text,
            "status": "preliminary" if preliminary else "final",
            "time": f"{ds.get('ContentDate', '') or ''}{ds.get('ContentTime', '') or ''}",
        }
    except Exception as err:  # a hostile file fails in every way there is
        raise ValueError("no readable structured report") from err


def _lines(item: Dataset, depth: int) -> Iterator[str]:
    """The lines of a content item and of those it contains, in order."""
    if depth > _DEEPEST:
        raise ValueError("nested beyond sense")
    for child in item.get("ContentSequence") or ():
        if str(child.get("RelationshipType", "CONTAINS")) not in ("CONTAINS", "HAS PROPERTIES", "INFERRED FROM"):
            continue
        kind, name = str(child.get("ValueType", "")), _meaning(child, "ConceptNameCodeSequence")
        inner = list(_lines(child, depth + 1))
        if kind == "CONTAINER":
            yield from ([f"{name}:"] if name and inner else [])
        elif (value := _value(child, kind)) is not None:
            # a sentence under a heading of its own stands below it, a measurement beside its name
            yield from ([f"{name}:", value] if kind == "TEXT" and name else [f"{name}: {value}" if name else value])
        yield from inner


def _value(item: Dataset, kind: str) -> str | None:
    """The value of a content item in words; None for kinds that are not taken."""
    if kind == "TEXT":
        return str(item.get("TextValue", "") or "").strip() or None
    if kind == "CODE":
        return _meaning(item, "ConceptCodeSequence") or None
    if kind == "NUM":
        for measured in item.get("MeasuredValueSequence") or ():
            unit = next(
                (str(code.get("CodeValue", "")) for code in measured.get("MeasurementUnitsCodeSequence") or ()), ""
            )
            return f"{measured.get('NumericValue', '')} {unit if unit != '1' else ''}".strip()
    return None


def _meaning(item: Dataset, keyword: str) -> str:
    codes: Any = item.get(keyword) or ()
    return next((str(code.get("CodeMeaning", "") or "").strip() for code in codes), "")
