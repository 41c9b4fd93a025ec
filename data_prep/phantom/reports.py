"""Radiology reports in free text: the truth of a study in varied words, order, negation and typing habits.

The text states every finding of the truth, and nothing that is not so; history and technique carry no diagnosis.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from data_prep.phantom import wording
from data_prep.phantom.lesions import ABDOMEN_KINDS, HEAD_KINDS
from data_prep.phantom.names import dicom_name, person, spoken, written_date
from data_prep.phantom.plan import StudyPlan
from data_prep.phantom.signal import Weighting
from data_prep.phantom.sites import SITES

Choice = TypeVar("Choice")


@dataclass(frozen=True, slots=True, kw_only=True)
class Staff:
    """Who looks after a study; their names enter headers and reports."""

    referring: tuple[str, str]
    reading: tuple[str, str]
    operator: tuple[str, str]
    telephone: str
    street: str


def draw_staff(rng: np.random.Generator) -> Staff:
    """The people around one study."""
    sexes = ["F" if v < 0.5 else "M" for v in rng.random(3)]
    people = [person(rng, sex) for sex in sexes]
    return Staff(
        referring=people[0],
        reading=people[1],
        operator=people[2],
        telephone=f"0{int(rng.integers(151, 179))}-{int(rng.integers(2_000_000, 9_999_999))}",
        street=f"{person(rng, 'F')[0].title()}weg {int(rng.integers(1, 180))}",
    )


def identifiers(plan: StudyPlan, staff: Staff) -> list[str]:
    """Every string of the study's headers and report that must not leave the hospital."""
    patient = plan.patient
    people = [patient.name, staff.referring, staff.reading, staff.operator]
    found = {dicom_name(name) for name in people} | {spoken(name) for name in people}
    found |= {name[0] for name in people} | {name[0].title() for name in people}
    days = [patient.birth_date, plan.moment.date()] + ([plan.previous] if plan.previous else [])
    for day in days:
        found |= {day.strftime(style) for style in ("%Y%m%d", "%Y-%m-%d", "%d.%m.%Y", "%d/%m/%Y")}
        found |= {day.strftime("%d %B %Y"), day.strftime("%d-%b-%Y")}
    found |= {patient.patient_id, plan.accession, plan.study_uid, plan.frame_uid, staff.telephone, staff.street}
    site = SITES[plan.site]
    found |= {series.uid for series in plan.series} | {site.institution, site.address}
    return sorted(found)


def findings_tuple(plan: StudyPlan) -> str:
    """The findings as one word, e.g. ``tumour.left.frontal.atrophy1.sinus_none``; abdomens: ``cyst.left.kidney``."""
    lesion = plan.lesion
    words = [lesion.kind.value, lesion.side, lesion.site] if lesion else ["none", "none", "none"]
    if plan.patient.head:
        words += [f"atrophy{plan.patient.atrophy_grade}", f"sinus_{plan.patient.sinus}"]
    return ".".join(words)


def write_report(
    plan: StudyPlan, staff: Staff, rng: np.random.Generator, typing_share: float, identity_share: float
) -> str:
    """The report of a study, with its habits of typing and its carelessness with names drawn by `rng`."""
    findings, impression = _findings(plan, rng), _impression(plan, rng)
    named = bool(rng.random() < identity_share)
    history, technique = _history(plan, rng, named), _technique(plan, rng)
    heads = wording.HEADINGS[plan.site % len(wording.HEADINGS)]
    if rng.random() < 0.25:
        heads = _pick(rng, wording.HEADINGS)
    gap = "\n" if rng.random() < 0.5 else " "
    blocks = [
        f"{head}{gap}{text}" for head, text in zip(heads, (history, technique, findings, impression), strict=True)
    ]
    order = (0, 1, 2, 3) if rng.random() < 0.75 else (1, 0, 2, 3) if rng.random() < 0.6 else (0, 1, 3, 2)
    text = "\n\n".join(blocks[k] for k in order)
    if SITES[plan.site].code in ("BROW", "GOTO", "FJOR"):
        for british, american in wording.AMERICAN:
            text = text.replace(british, american)
    if rng.random() < typing_share:
        text = _habits(text, heads, rng)
    if named:
        text = "\n".join([*_letterhead(plan, staff, rng), text, *_signature(plan, staff, rng)])
    return text


def _pick(rng: np.random.Generator, choices: Sequence[Choice]) -> Choice:
    return choices[int(rng.integers(len(choices)))]


def _place(plan: StudyPlan, rng: np.random.Generator) -> str:
    lesion = plan.lesion
    assert lesion is not None
    side, site = lesion.side, lesion.site
    if site == "liver":
        return _pick(rng, (f"{side} lobe of the liver", f"{side} hepatic lobe", f"{side} liver lobe"))
    if site == "kidney":
        return f"{side} kidney"
    if site == "cerebellar":
        return _pick(
            rng, (f"{side} cerebellar hemisphere", f"{side} cerebellum", f"{side} hemisphere of the cerebellum")
        )
    return _pick(rng, (f"{side} {site} lobe", f"{site} lobe on the {side}", f"{side} {site} region"))


def _size(size_mm: float, rng: np.random.Generator) -> str:
    style = int(rng.integers(3))
    if style == 0:
        return f"{round(size_mm)} mm"
    if style == 1:
        return f"{size_mm / 10:.1f} cm"
    across, deep = (round(size_mm * float(f)) for f in rng.uniform(0.85, 1.0, 2))
    return f"{round(size_mm)} x {across} x {deep} mm"


def _fill(text: str, place: str, size: str = "") -> str:
    return text.format(loc=place, Loc=place[0].upper() + place[1:], size=size)


def _shuffled(rng: np.random.Generator, sentences: list[str]) -> list[str]:
    return [sentences[int(k)] for k in rng.permutation(len(sentences))]


def _findings(plan: StudyPlan, rng: np.random.Generator) -> str:
    head, lesion = plan.patient.head, plan.lesion
    acquired = {s.weighting for s in plan.series}
    kinds = HEAD_KINDS if head else ABDOMEN_KINDS
    groups: list[list[str]] = []
    if lesion is not None:
        place, size = _place(plan, rng), _size(lesion.size_mm, rng)
        told = [_fill(_pick(rng, wording.FINDING[lesion.kind]), place, size)]
        if Weighting.T1W_C in acquired:
            told.append(_pick(rng, wording.ENHANCES[lesion.kind]))
        if Weighting.DWI in acquired and rng.random() < 0.8:
            told.append(_pick(rng, wording.RESTRICTS[lesion.kind]))
        if plan.visit:
            told.append(_pick(rng, ("Slightly larger than on the prior study.", "Known lesion, progressive.")))
        groups.append(told)
        others = [k for k in kinds if k != lesion.kind]
        for k in _shuffled(rng, [str(o) for o in others])[: int(rng.integers(0, len(others) + 1))]:
            groups.append([_pick(rng, wording.ABSENT[k])])
    else:
        groups.append([_pick(rng, wording.NORMAL_HEAD if head else wording.NORMAL_ABDOMEN)])
        for k in _shuffled(rng, [str(o) for o in kinds])[: int(rng.integers(0, len(kinds) + 1))]:
            groups.append([_pick(rng, wording.ABSENT[k])])
    if head:
        groups.append([_pick(rng, wording.ATROPHY[plan.patient.atrophy_grade])])
        if plan.patient.sinus != "none":
            groups.append([_pick(rng, wording.SINUS).format(side=plan.patient.sinus)])
        elif rng.random() < 0.75:
            groups.append([_pick(rng, wording.SINUS_CLEAR)])
    filler = _shuffled(rng, list(wording.FILLER_HEAD if head else wording.FILLER_ABDOMEN))
    groups += [[line] for line in filler[: int(rng.integers(0, 4))]]
    order = range(len(groups)) if rng.random() < 0.3 else rng.permutation(len(groups))
    return " ".join(line for k in order for line in groups[int(k)])


def _impression(plan: StudyPlan, rng: np.random.Generator) -> str:
    head, lesion = plan.patient.head, plan.lesion
    if lesion is not None:
        lines = [_fill(_pick(rng, wording.DIAGNOSIS[lesion.kind]), _place(plan, rng))]
    else:
        lines = [_pick(rng, wording.NORMAL_HEAD_IMPRESSION if head else wording.NORMAL_ABDOMEN_IMPRESSION)]
    if head:
        grade = plan.patient.atrophy_grade
        if grade or rng.random() < 0.35:
            lines.append(_pick(rng, wording.ATROPHY_IMPRESSION[grade]))
        if plan.patient.sinus != "none" and rng.random() < 0.8:
            side = plan.patient.sinus
            lines.append(_pick(rng, wording.SINUS_IMPRESSION).format(side=side, Side=side.title()))
    if rng.random() < 0.2:
        lines = _shuffled(rng, lines)
    style = int(rng.integers(3))
    if style == 0 and len(lines) > 1:
        return "\n".join(f"{k}. {line}" for k, line in enumerate(lines, 1))
    if style == 1 and len(lines) > 1:
        return "\n".join(f"- {line}" for line in lines)
    return " ".join(lines)


def _history(plan: StudyPlan, rng: np.random.Generator, named: bool) -> str:
    patient = plan.patient
    noun = {"F": ("woman", "female"), "M": ("man", "male")}[patient.sex]
    complaint = _pick(rng, wording.HISTORY_HEAD if patient.head else wording.HISTORY_ABDOMEN)
    if named and rng.random() < 0.5:
        title = "Mrs" if patient.sex == "F" else "Mr"
        return f"{title} {patient.name[0].title()}, {plan.age_years} years, {complaint}."
    return _pick(
        rng,
        (
            f"{plan.age_years}-year-old {noun[0]} with {complaint}.",
            f"{complaint.capitalize()}. {plan.age_years} y/o {noun[1]}.",
            f"{complaint.capitalize()}.",
            f"{noun[0].capitalize()}, {plan.age_years} years. Question: cause of {complaint}?",
        ),
    )


def _technique(plan: StudyPlan, rng: np.random.Generator) -> str:
    site = SITES[plan.site]
    names = ", ".join(f"{s.plane} {s.weighting.value.replace('T1w+c', 'T1w post contrast')}" for s in plan.series)
    body = "brain" if plan.patient.head else "abdomen"
    agent = any(s.weighting is Weighting.T1W_C for s in plan.series)
    dose = _pick(rng, ("i.v. gadobutrol 7.5 ml", "gadobutrol 0.1 mmol/kg", "i.v. gadolinium")) if agent else ""
    return f"MRI of the {body} at {site.field_t:g} T: {names}." + (f" Contrast: {dose}." if agent else "")


def _letterhead(plan: StudyPlan, staff: Staff, rng: np.random.Generator) -> list[str]:
    patient = plan.patient
    born, today = written_date(rng, patient.birth_date), written_date(rng, plan.moment.date())
    lines = [
        _pick(
            rng,
            (
                f"Patient: {spoken(patient.name)}, born {born}, ID {patient.patient_id}",
                f"NAME: {patient.name[0]}, {patient.name[1]}   DOB: {born}   MRN: {patient.patient_id}",
                f"Re: {spoken(patient.name)} ({born}). Accession {plan.accession}",
            ),
        ),
        _pick(rng, (f"Date of examination: {today}", f"Exam date {today}, referred by Dr. {spoken(staff.referring)}")),
    ]
    if plan.previous is not None:
        lines.append(f"Comparison: MRI of {written_date(rng, plan.previous)}")
    return [*lines, ""]


def _signature(plan: StudyPlan, staff: Staff, rng: np.random.Generator) -> list[str]:
    today: dt.date = plan.moment.date()
    lines = ["", f"Electronically signed by Dr. {spoken(staff.reading)}, {written_date(rng, today)}"]
    if rng.random() < 0.4:
        lines.insert(1, f"Discussed with Dr. {spoken(staff.referring)} by telephone ({staff.telephone}).")
    return lines


PROTECTED = frozenset(
    ("left", "right", "frontal", "temporal", "parietal", "occipital", "cerebellar", "cerebellum", "hemisphere")
) | {"kidney", "liver"}
"""Words that typing slips spare: without them a report would no longer state its truth."""


def _habits(text: str, heads: Sequence[str], rng: np.random.Generator) -> str:
    """Shorthand, shouting, lower case or slips of the keyboard, outside the headings."""
    style = int(rng.integers(4))
    lines = []
    for line in text.split("\n"):
        head = next((h for h in heads if line.startswith(h)), "")
        body = line[len(head) :]
        if style == 0:
            for long, short in wording.SHORTHAND:
                body = body.replace(long, short)
        elif style == 1:
            body = body.upper()
        elif style == 2:
            body = body.lower().replace(". ", ".  " if rng.random() < 0.5 else ". ")
        else:
            body = " ".join(_slip(word, rng) for word in body.split(" "))
        lines.append(head + body)
    return "\n".join(lines)


def _slip(word: str, rng: np.random.Generator) -> str:
    """The word, one in twelve times with two letters swapped, one lost or one doubled."""
    if len(word) < 6 or not word.isalpha() or word.lower() in PROTECTED or rng.random() > 1 / 12:
        return word
    k, kind = int(rng.integers(1, len(word) - 2)), int(rng.integers(3))
    if kind == 0:
        return word[:k] + word[k + 1] + word[k] + word[k + 2 :]
    return word[:k] + word[k + 1 :] if kind == 1 else word[:k] + word[k] + word[k:]
