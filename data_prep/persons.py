"""The link file: one person known under several patient numbers, in one hospital or in many."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.headers import Header
from data_prep.keys import Keyring, is_placeholder
from fm.config.errors import UserError

_COLUMNS = ("issuer", "patient_id", "person")


@dataclass(kw_only=True, slots=True)
class Persons:
    """Persons by (issuer, patient number); without a link file every number is a person of its own."""

    site: str = ""
    """Issuer of numbers whose header names none."""
    by_number: dict[tuple[str, str], str] = field(default_factory=dict)

    def pseudonym(self, headers: Sequence[Header], keyring: Keyring) -> str:
        """Pseudonym of a study's patient: of the linked person, else of the number, else of the study alone."""
        identity = headers[0].identity
        issuer = (identity.issuer or self.site).strip()
        person = self.by_number.get((issuer, identity.patient_id.strip()))
        if person is not None:
            return keyring.digest("person", person)
        return keyring.patient(issuer, identity.patient_id, headers[0].study_uid)

    def same(self, patient_id: str, headers: Sequence[Header]) -> bool:
        """Whether a table's patient number is the study's: equal, unknown (a placeholder), or linked to one person."""
        wanted = patient_id.strip()
        known = {header.identity.patient_id for header in headers}
        if not wanted or is_placeholder(wanted) or wanted in known or all(is_placeholder(number) for number in known):
            return True
        persons = {person for (_, number), person in self.by_number.items() if number in known}
        return any(number == wanted and person in persons for (_, number), person in self.by_number.items())


def read_persons(path: str, site: str) -> Persons:
    """Read a link file: CSV with the columns issuer, patient_id, person; person is any word that names one person.

    Raises:
        UserError: the file cannot be read, lacks a column or a cell, gives one number two persons, or links a
            placeholder number.
    """
    persons = Persons(site=site)
    if not path:
        return persons
    where = f"prepare.link_file={path}"
    try:
        text = Path(path).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as err:
        raise UserError(f"{where} cannot be read ({type(err).__name__}); give a CSV file in UTF-8") from None
    reader = csv.DictReader(text.splitlines())
    if set(_COLUMNS) - set(reader.fieldnames or ()):
        raise UserError(f"{where} needs the columns {', '.join(_COLUMNS)}")
    for row_number, row in enumerate(reader, 1):
        issuer, number, person = ((row[name] or "").strip() for name in _COLUMNS)
        if not person or is_placeholder(number):
            raise UserError(
                f"{where}, row {row_number}: person is empty, or patient_id is a placeholder; remove the row"
            )
        if persons.by_number.setdefault((issuer, number), person) != person:
            raise UserError(f"{where}, row {row_number}: the same issuer and patient_id stand for another person above")
    return persons
