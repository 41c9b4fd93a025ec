"""Rules that need no header: what they take, and what they must leave."""

from __future__ import annotations

import time

import pytest

from data_prep.reports.people import REMOVED, known
from data_prep.reports.scrub import scrub

from ..test_deid import NOBODY

NOTHING = known([NOBODY])


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        (
            "No mass. Electronically signed by Dr. Anna Unheard, 12.03.2020",
            "No mass. Electronically signed by [removed]",
        ),
        ("No mass.\nElectronically signed by Dr. Anna Unheard, 12.03.2020", "No mass."),
        ("No mass.\nDiscussed with Dr Schröd by telephone (0151-2345678).", "No mass."),
        ("Her mother Zdravka Mlakar, a nurse, came.", "Her mother [removed], a nurse, came."),
        ("Zdravka Mlakar, his wife, was present.", "[removed], his wife, was present."),
        ("seen by dr anna kowalska today", "seen by [removed] today"),
        ("READ BY DR SMITH WILL REVIEW", "READ BY [removed] WILL REVIEW"),
        ("Grade 2 may represent; 2 May 2019; 3rd of may.", "Grade 2 may represent; [removed]."),
        ("A 93-year-old woman, 64 years of pain.", "A [removed]-year-old woman, 64 years of pain."),
        ("Lives at 12 High Street, Oxford OX1 4AB. Normal.", "[removed]. Normal."),
        ("Send it to Hauptstraße 12, 10115 Berlin today.", "Send it to [removed] today."),
        ("Transferred from Klinikum Hildesheim.", "Transferred from [removed]."),
        ("The University Hospital scanner was used.", "The University Hospital scanner was used."),
        ("Tel. 040 123 4567. 64-year-old man.", "[removed]. 64-year-old man."),
    ],
)
def test_identifiers_go_and_the_sentence_stays(text: str, cleaned: str) -> None:
    assert scrub(text, NOTHING) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "A. Axial T1. B. Coronal STIR.",
        "M. rectus and A. Carotis are normal.",
        "MRS voxel, MR Elastography and MS plaques.",
        "Coronal T2 (TR-600 ms; TE-83 ms).",
        "The daughter cyst and the mother lesion.",
        "Discussed with Ultrasound; compared with Prior MRI.",
        "ICA, MCA, PICA and IMA are patent.",
        "THE LEFT ICA IS PATENT. BLAKE POUCH CYST.",
        "Anderson Fabry’s disease, Blake pouch, Morton neuroma.",
        "Patient: unable to lie still.",
        "b values 0, 500, 1000; 12 x 9 x 8 mm; L4/5.",
    ],
)
def test_clinical_text_is_left_alone(text: str) -> None:
    assert scrub(text, NOTHING) == text


@pytest.mark.parametrize(
    "piece", ["Aa Bb, ", "A. B. ", "12-3 ", "MEDICAL CENTER ", "reported by and ", "(1) 2.", "1 Ab-"]
)
def test_time_grows_with_the_length_of_the_text(piece: str) -> None:
    start = time.process_time()
    scrub(piece * (20_000 // len(piece)), NOTHING)
    assert time.process_time() - start < 10, REMOVED
