"""Scrubbing of reports: what must go goes, what a clinician said stays; rows 19 and 21 of the fault battery."""

from __future__ import annotations

from dataclasses import replace

import pytest

from data_prep.ledger import QuarantineError, Reason
from data_prep.reports.text import REMOVED, clean_report, sections

from ..test_deid import NOBODY

WHO = replace(
    NOBODY,
    patient_id="19368790",
    accession="H160000000",
    people=("MÜLLER^JÜRGEN^KARL", "O'SULLIVAN^NIAMH", "VAN DER VEEN^LARS-ERIK"),
    numbers=("19368790", "H160000000"),
    places=("Brookwater General", "BROW-MR1"),
    dates=("20200812", "19610304"),
)

CANARIES = (
    "Jürgen Müller",
    "JURGEN MULLER",
    "Mueller, Juergen",
    "müller",
    "Niamh O'Sullivan",
    "Lars-Erik van der Veen",
    "19368790",
    "H160000000",
    "Brookwater General",
    "brow-mr1",
    "2020-08-12",
    "12.08.2020",
    "12/8/20",
    "August 12, 2020",
    "12 Aug 2020",
    "4th March 1961",
    "19610304",
    "14:35",
    "Dr. Unheardof Person",
    "dr unheardof person",
    "Prof. Nemo",
    "Mrs Elsewhere",
    "tel. 040 123 4567",
    "+44 20 7946 0958",
    "someone@hospital.example",
    "MRN: 55-1234",
    "https://pacs.example/x?y",
    "3/11/2019",
    "5 June",
)


@pytest.mark.parametrize("canary", CANARIES)
@pytest.mark.parametrize("frame", ["{}", "FINDINGS: Seen by {}.", "compared with {}, unchanged", "x ({}) y"])
def test_row_19_no_canary_survives(canary: str, frame: str) -> None:
    text = "There is a 7 cm lesion. " + frame.format(canary) + "\nNo oedema."
    report = clean_report(text, [WHO], 10_000)
    left = " ".join((report.findings, report.impression, report.technique, report.history)).casefold()
    for word in canary.replace(",", " ").split():
        if any(c.isdigit() for c in word) or word[0].isupper():
            assert word.casefold().strip("().:") not in left.replace(REMOVED, "")


CLINICAL = (
    "12 x 9 x 8 mm mass in the left frontal lobe",
    "2.4 cm cyst, unchanged",
    "T2 hyperintense, TE 100 ms, TR 4500 ms",
    "MS plaques; MR angiography normal",
    "MR imaging of the brain at 1.5 T",
    "Parkinson disease, Baker cyst, Virchow-Robin spaces, Chiari malformation",
    "white matter lesions may represent gliosis",
    "C5/6 and L4/5 disc protrusion, grade 2 to 3",
    "midline shift of 4 mm; 3 of 5 lesions enhance",
    "no restricted diffusion at b 1000",
    "signal void in the left ICA, M1 patent",
    "follow-up in 6 months recommended",
    "Gd 7.5 ml i.v., 0.1 mmol/kg",
    "64-year-old man with headache for 3 weeks",
    "ASPECTS 10, Fazekas 1, PI-RADS 4, BI-RADS 2",
    "right-sided, bilateral, no evidence of haemorrhage",
)


@pytest.mark.parametrize("words", CLINICAL)
def test_clinical_words_stay(words: str) -> None:
    named_after_words = replace(WHO, people=("WHITE^MAY", "BAKER^GRACE", "PARKINSON^LEFT"))
    for identity in (WHO, named_after_words):
        assert clean_report(f"FINDINGS: {words}.", [identity], 10_000).findings == f"{words}."


def test_a_patient_named_after_a_word_is_removed_where_written_as_a_name() -> None:
    who = replace(NOBODY, people=("WHITE^MAY",))
    report = clean_report("Mrs May White has white matter lesions. WHITE, MAY. They may grow.", [who], 1000)
    assert report.findings == f"{REMOVED} has white matter lesions. {REMOVED}. They may grow."


def test_sections_are_parted_in_any_order() -> None:
    text = (
        "Clinical information: headache.\nTECHNIQUE\nT2w axial.\n\nIMPRESSION: 1. Normal.\n2. Sinusitis.\n"
        "Findings: Brain normal. Conclusion: none.\nComparison: CT of last year.\nReferring physician: somebody"
    )
    assert sections(text) == {
        "findings": "Brain normal.",
        "impression": "1. Normal.\n2. Sinusitis.\nnone.",
        "technique": "T2w axial.",
        "history": "headache.",
    }


def test_text_without_headings_is_findings() -> None:
    assert sections("Normal brain. No lesion.")["findings"] == "Normal brain. No lesion."


def test_a_header_block_is_no_finding() -> None:
    report = clean_report("NAME: MÜLLER, JÜRGEN DOB: 04.03.1961\n\nFINDINGS: Normal.\nIMPRESSION: Normal.", [WHO], 1000)
    assert (report.findings, report.impression, report.history) == ("Normal.", "Normal.", "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", Reason.REPORT_EMPTY),
        (" \n\t", Reason.REPORT_EMPTY),
        ("TECHNIQUE: T1w.", Reason.REPORT_EMPTY),
        ("Dr. Jürgen Müller", Reason.REPORT_EMPTY),
        (b"Normal \xff\xfe".decode("utf-8", "surrogateescape"), Reason.REPORT_NOT_UTF8),
        ("x" * 1_000_000, Reason.REPORT_TOO_LONG),
        ("Normal, see mullermueller", Reason.REPORT_RESIDUAL),
        ("Normal, see series19368790x", Reason.REPORT_RESIDUAL),
        ("Normal, see 193 687 90", Reason.REPORT_RESIDUAL),
        ("Lesion of J.ü.r.g.e.n", Reason.REPORT_RESIDUAL),
        ("Normal, JÜRGEN_M was here", None),
    ],
)
def test_row_21_reports_that_cannot_be_used(text: str, reason: Reason | None) -> None:
    if reason is None:
        assert clean_report(text, [WHO], 10_000).findings
        return
    with pytest.raises(QuarantineError) as caught:
        clean_report(text, [WHO], 10_000)
    assert caught.value.reason is reason
