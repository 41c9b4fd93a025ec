from __future__ import annotations

import re

import numpy as np
import pytest

from data_prep.phantom.plan import StudyPlan, plan_population
from data_prep.phantom.reports import draw_staff, identifiers, write_report
from data_prep.phantom.wording import AMERICAN, HEADINGS
from fm.config.phantom import PhantomConfig

KIND_WORDS = {
    "tumour": r"mass|tumou?r|neoplasm|glioma|space-occupying",
    "stroke": r"infarct|ischa?emi",
    "plaques": r"plaque|demyelinat|lesion",
    "haemorrhage": r"h(a|æ)?ematoma|ha?emorrhage|bleed|blood",
    "metastasis": r"metasta|deposit|secondary",
    "cyst": r"cyst",
}
GRADE_WORDS = (r"normal|no (significant|atrophy)|age-appropriate", r"mild|slight", r"marked|severe|advanced|pronounced")
HEADS = re.compile("|".join(re.escape(h) for heads in HEADINGS for h in heads))


@pytest.fixture(scope="module")
def reports() -> list[tuple[StudyPlan, str, list[str]]]:
    written = []
    for plan in plan_population(240, 5, PhantomConfig()):
        rng = np.random.default_rng(plan.index)
        staff = draw_staff(rng)
        written.append((plan, write_report(plan, staff, rng, 0.35, 0.5), identifiers(plan, staff)))
    return written


def sections(text: str) -> dict[str, str]:
    found = list(HEADS.finditer(text))
    kinds = {
        h: k
        for heads in HEADINGS
        for h, k in zip(heads, ("history", "technique", "findings", "impression"), strict=True)
    }
    ends = [m.start() for m in found[1:]] + [len(text)]
    return {kinds[m.group()]: text[m.end() : end].lower() for m, end in zip(found, ends, strict=True)}


def test_every_report_has_its_four_sections(reports) -> None:
    for _, text, _ in reports:
        found = sections(text)
        assert set(found) == {"history", "technique", "findings", "impression"}
        assert all(len(body.strip()) > 3 for body in found.values())


def test_reports_state_the_truth(reports) -> None:
    for plan, text, _ in reports:
        found = sections(text)
        for part in (found["findings"], found["impression"]):
            if plan.lesion is None:
                continue
            # A slip may swap two letters, so the kind is looked for in both sections together.
            assert re.search(rf"\b{plan.lesion.side}\b", part), text
            assert plan.lesion.site[:9] in part.replace("hepatic", "liver").replace("cerebellum", "cerebellar"), text
        both = found["findings"] + found["impression"]
        if plan.lesion is None and plan.patient.sinus == "none":
            assert not re.search(r"\b(left|right)\b", both), text
        elif plan.lesion is not None:
            assert re.search(KIND_WORDS[plan.lesion.kind], both), text
            other = "left" if plan.lesion.side == "right" else "right"
            if plan.patient.sinus in ("none", plan.lesion.side):
                assert not re.search(rf"\b{other}\b", both), text
        if plan.patient.sinus != "none":
            assert re.search(rf"\b{plan.patient.sinus}\b[^.]*(maxill|sinus|antr)", both) or "sinus" in both, text


def test_atrophy_is_graded_in_words(reports) -> None:
    hits = [
        bool(re.search(GRADE_WORDS[plan.patient.atrophy_grade], sections(text)["findings"]))
        for plan, text, _ in reports
        if plan.patient.head
    ]
    assert np.mean(hits) > 0.97  # typing slips hide a few


def test_history_and_technique_carry_no_diagnosis(reports) -> None:
    diagnoses = re.compile(r"tumou?r|infarct|plaque|ha?emorrhage|metasta|cyst|atrophy|sinus")
    for _, text, _ in reports:
        found = sections(text)
        assert not diagnoses.search(found["history"].split("electronically")[0])
        assert not diagnoses.search(found["technique"].split("electronically")[0])


def test_wording_varies(reports) -> None:
    bodies = [sections(text)["findings"] for _, text, _ in reports]
    assert len(set(bodies)) > 0.98 * len(bodies)
    assert any(text.isupper() for text in (body.upper() for body in bodies))
    lesion_free = {sections(t)["impression"].strip() for p, t, _ in reports if p.lesion is None}
    assert len(lesion_free) > 15
    spelling = " ".join(bodies)
    assert any(british in spelling for british, _ in AMERICAN) and "tumor" in spelling


def test_some_reports_name_people_and_all_names_are_known(reports) -> None:
    named = [any(i in text for i in known) for _, text, known in reports]
    assert 0.4 < np.mean(named) < 0.65
    for plan, text, known in reports:
        if plan.accession in text:
            assert plan.accession in known
        if f"born {plan.patient.birth_date:%d.%m.%Y}" in text:
            assert f"{plan.patient.birth_date:%d.%m.%Y}" in known
        assert len(known) >= 25


def test_without_carelessness_no_identifier_is_written() -> None:
    for plan in plan_population(60, 9, PhantomConfig()):
        rng = np.random.default_rng(plan.index)
        staff = draw_staff(rng)
        text = write_report(plan, staff, rng, 0.35, 0.0)
        assert not [i for i in identifiers(plan, staff) if i in text]
