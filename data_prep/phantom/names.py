"""Invented people: names, numbers and dates that hospital data hold and that no output of the platform may keep.

None of the names is a word of English reports, so that a scanner for leaks needs no exceptions.
"""

from __future__ import annotations

import datetime as dt
import unicodedata

import numpy as np

FAMILY = (
    "MÜLLER", "SCHRÖDER", "KOWALSKI", "NGUYEN", "IBRAHIMOVIC", "GARCÍA", "FERNÁNDEZ", "OKONKWO", "YAMAMOTO", "TANAKA",
    "SVENSSON", "JØRGENSEN", "DUBOIS", "LEFÈVRE", "ROSSETTI", "BIANCHI", "NOVÁK", "HORVÁTH", "PAPADOPOULOS", "IVANOVA",
    "PETROV", "HADDAD", "RAHMAN", "CHAUDHARY", "SUBRAMANIAN", "OBERMEIER", "WIŚNIEWSKA", "VAN DER VEEN", "O'SULLIVAN",
    "MACGREGOR", "ABERNATHY", "THORNTON", "WHITAKER", "HOLLINGWORTH", "PEMBERTON", "STEINBACHER", "ZIMMERMANN",
    "KÜHNERT", "LINDQVIST", "HAKALA", "VIRTANEN", "MORALES", "QUINTERO", "VELÁSQUEZ", "TAKAHASHI", "KOBAYASHI",
    "ADEYEMI", "MBEKI", "ERDOĞAN", "YILMAZ",
)  # fmt: skip
GIVEN = {
    "F": ("ANNA", "HELENE", "MAGDALENA", "SOFÍA", "YUKIKO", "INGRID", "FATIMA", "CHIARA", "ELŻBIETA", "NIAMH",
          "KATARZYNA", "LEILA", "ADAEZE", "PRIYA", "BRIGITTE", "ESPERANZA", "TUULIKKI", "ZEYNEP", "ROSALIND", "AGNÈS"),
    "M": ("JÜRGEN", "TOMASZ", "MATTHÉO", "HIROSHI", "LARS-ERIK", "AHMED", "GIUSEPPE", "DIEGO", "FIONN", "VIKRAM",
          "CHUKWUDI", "BJØRN", "EMRE", "SANTIAGO", "WOLFGANG", "ALISTAIR", "DIMITRI", "JOAQUÍN", "OTTOKAR", "RUPERT"),
}  # fmt: skip


def person(rng: np.random.Generator, sex: str) -> tuple[str, str]:
    """(family, given) name in capitals."""
    return FAMILY[int(rng.integers(len(FAMILY)))], GIVEN[sex][int(rng.integers(len(GIVEN[sex])))]


def dicom_name(name: tuple[str, str]) -> str:
    """The name as DICOM's PN: FAMILY^GIVEN."""
    return f"{name[0]}^{name[1]}"


def spoken(name: tuple[str, str]) -> str:
    """The name as a report writes it: Given Family."""
    return f"{name[1].title()} {name[0].title()}"


def ascii_name(text: str) -> str:
    """Letters and digits only, for folder names."""
    special = str.maketrans({"Ø": "O", "Ł": "L", "Ğ": "G", "ß": "ss", "İ": "I"})
    plain = unicodedata.normalize("NFKD", text.translate(special)).encode("ascii", "ignore").decode()
    return "".join(c if c.isalnum() else "_" for c in plain)


DATE_STYLES = ("%Y-%m-%d", "%d.%m.%Y", "%d/%m/%Y", "%d %B %Y", "%d-%b-%Y")


def written_date(rng: np.random.Generator, day: dt.date) -> str:
    """A date in one of the ways reports write it."""
    return day.strftime(DATE_STYLES[int(rng.integers(len(DATE_STYLES)))])
