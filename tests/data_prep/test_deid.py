from __future__ import annotations

from dataclasses import replace

import pytest

from data_prep import deid
from data_prep.headers import Identity

from .test_sequences import BLANK

NOBODY = Identity(
    patient_id="",
    issuer="",
    accession="",
    people=(),
    numbers=(),
    places=(),
    dates=(),
    study_date="20200812",
    birth_date="",
    age="",
    sex="",
)


@pytest.mark.parametrize(
    ("age", "born", "years"),
    [
        ("041Y", "", 41),
        ("41Y", "", 41),
        ("002Y", "", 2),
        ("089Y", "", 89),
        ("090Y", "", "90+"),
        ("104Y", "", "90+"),
        ("018M", "", 1.5),
        ("006W", "", 0.1),
        ("010D", "", 0.0),
        ("000Y", "", None),
        ("0Y", "", None),
        ("0Y", "20200812", None),
        ("0Y", "20200412", 0.3),
        ("", "19610304", 59),
        ("", "19610813", 58),
        ("***", "***", None),
        ("999Y", "", None),
        ("041", "", None),
        ("", "18000101", None),
        ("", "20210101", None),
    ],
)
def test_ages(age: str, born: str, years: float | str | None) -> None:
    assert deid.age(replace(NOBODY, age=age, birth_date=born)) == years


@pytest.mark.parametrize(("word", "sex"), [("F", "f"), ("M", "m"), ("O", "o"), ("", None), ("Mrs Okonkwo", None)])
def test_sex_is_one_of_three_words(word: str, sex: str | None) -> None:
    assert deid.sex(replace(NOBODY, sex=word)) == sex


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("SIEMENS", "siemens"),
        ("GE MEDICAL SYSTEMS", "ge"),
        ("Philips Healthcare", "philips"),
        ("UIH", "united_imaging"),
        ("TOSHIBA_MEC", "canon"),
        ("Hyperfine", "hyperfine"),
        ("Practice of Dr Okonkwo", "other"),
        ("", None),
    ],
)
def test_vendor_is_a_word_of_a_list(text: str, word: str | None) -> None:
    assert deid.vendor(replace(BLANK, vendor=text)) == word


def test_numbers_are_bounded() -> None:
    assert deid.bounded(4500.0004, 0, 60_000) == 4500.0
    assert deid.bounded(19610304, 0, 60_000) is None
    assert deid.bounded(None, 0, 1) is None
