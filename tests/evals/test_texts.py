from __future__ import annotations

import pytest

from evals.texts import matching_text, states_age_or_sex
from fm.data.sample import Report, StudyMeta


@pytest.mark.parametrize(
    "sentence",
    [
        "72-year-old woman with headache.",
        "A 54 year old patient.",
        "Patient is 8 months old.",
        "Aged 81.",
        "67 y/o with known glioma.",
        "68M, follow-up.",
        "This gentleman was seen before.",
        "His ventricles are wide.",
        "Neonate.",
    ],
)
def test_age_and_sex_are_noticed(sentence: str) -> None:
    assert states_age_or_sex(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "Mass of 12 mm in the left frontal lobe.",
        "Lesion of 3 cm beside one of 7 mm.",
        "Typical MS plaques on MR.",
        "Ventricles normal for age.",
        "Follow-up in 6 months.",
        "The 3 T examination shows no haemorrhage.",
        "Thermal image of the frontal lobe; hemisphere intact.",
    ],
)
def test_findings_are_left_alone(sentence: str) -> None:
    assert not states_age_or_sex(sentence)


def test_the_text_is_findings_and_impression_without_age_sex_and_technique() -> None:
    report = Report(
        findings="A 70-year-old man. Mass in the left frontal lobe.\nNo haemorrhage.",
        impression="Tumour; her age is 70 years.",
        technique="T1, T2, FLAIR.",
        history="Headache.",
    )
    study = StudyMeta(key="a", patient="p", region="head", series=[], report=report)
    assert matching_text(study) == "Mass in the left frontal lobe. No haemorrhage. Tumour;"
    assert matching_text(StudyMeta(key="a", patient="p", region="head", series=[])) == ""
