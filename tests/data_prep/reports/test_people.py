"""Identifiers of the headers, however they are written."""

from __future__ import annotations

from dataclasses import replace

import pytest

from data_prep.reports.people import REMOVED, known, remove_known, survivors

from ..test_deid import NOBODY
from .test_text import WHO


@pytest.mark.parametrize(
    "text",
    [
        "Müller",
        "MUELLER",
        "Muler",
        "Mülller",
        "Juergens",
        "Jürgen's",
        "Osullivan",
        "Lars Erik",
        "van der Veen",
        "H-160000000",
    ],
)
def test_a_name_or_number_goes_however_it_is_written(text: str) -> None:
    cleaned = remove_known(f"Images of {text} show no mass.", known([WHO]))
    assert REMOVED in cleaned and cleaned.startswith("Images of") and cleaned.endswith("show no mass.")
    assert not survivors(cleaned, known([WHO]))


@pytest.mark.parametrize(
    "text", ["Margins of the lesion", "Normal signal", "Wilson disease", "Dandy-Walker variant", "Weber fracture"]
)
def test_words_like_a_name_stay(text: str) -> None:
    who = replace(NOBODY, people=("MARGIN^NORMA", "WILSON^ANNE", "WALKER^DANDA", "WEBER^ERNST"))
    assert remove_known(text, known([who])) == text


@pytest.mark.parametrize("text", ["xxMULLERHANNx", "M ü l l e r h a n n", "was 1936 8790", "see 1.9.3.6.8.7.9.0"])
def test_what_is_left_is_noticed(text: str) -> None:
    who = replace(NOBODY, people=("MÜLLERHANN^X",), numbers=("19368790",))
    assert survivors(text, known([who]))
    assert not survivors("Normal brain, 19 x 36 x 87 mm.", known([who]))
