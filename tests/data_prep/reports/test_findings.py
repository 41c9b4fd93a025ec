"""What reports state, deny and leave open, measured against what the phantom knows."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.phantom.plan import plan_population
from data_prep.phantom.reports import draw_staff, write_report
from data_prep.reports.findings import Mention, State, as_labels, findings_of, mentions, read_findings
from data_prep.reports.sheet import COLUMNS, Rate, read_sheet, score, table
from data_prep.reports.text import clean_report
from fm.config.errors import UserError
from fm.config.phantom import PhantomConfig

from ..test_deid import NOBODY

KINDS = {
    "tumour": "mass", "stroke": "infarct", "plaques": "demyelination", "haemorrhage": "haemorrhage",
    "metastasis": "liver_metastasis", "cyst": "renal_cyst",
}  # fmt: skip
STATES = (
    ("There is a mass in the left frontal lobe.", {"mass": 1}),
    ("No mass, haemorrhage or infarct.", {"mass": 0, "haemorrhage": 0, "infarct": 0}),
    ("Brain without mass. Infarct of the left MCA territory.", {"mass": 0, "infarct": 1}),
    ("A tumour is not seen.", {"mass": 0}),
    ("No e/o tumour, but a small bleed.", {"mass": 0, "haemorrhage": 1}),
    ("No midline shift with a large mass.", {"midline_shift": 0, "mass": 1}),
    ("Possible infarct.", {}),
    ("Signal change that may represent infarction; haemorrhage cannot be excluded.", {}),
    ("Infarct? No bleeding.", {"haemorrhage": 0}),
    ("No tumour. Mass in the cerebellum.", {"mass": 1}),
    ("Mass effect on the ventricle.", {}),
    ("Findings suspicious for high-grade glioma.", {"mass": 1}),
    ("The haematoma has resolved.", {"haemorrhage": 0}),
    ("Plaques of demyelination, typical of MS.", {"demyelination": 1}),
    ("Ventricles and sulci are of normal size for age.", {"atrophy": 0}),
    ("Sinuses well aerated.", {"sinus_disease": 0}),
    ("The left maxillary antrum is filled with fluid.", {"sinus_disease": 1}),
    ("Disc protrusion at L4/5 without spinal stenosis.", {"disc_herniation": 1, "spinal_stenosis": 0}),
    ("Tear of the posterior horn of the medial meniscus. The ACL is intact.", {"meniscal_tear": 1, "acl_tear": 0}),
    ("Baker's cyst. No effusion.", {"baker_cyst": 1, "effusion": 0}),
    ("The kidneys are free of cysts.", {"renal_cyst": 0}),
    ("Bosniak I cyst of the left kidney, no follow-up needed.", {"renal_cyst": 1}),
)


@pytest.mark.parametrize(("text", "labels"), STATES)
def test_stated_denied_and_left_open(text: str, labels: dict[str, int]) -> None:
    found = as_labels(mentions(text, read_findings("")))
    assert found == {f"report_{name}": value for name, value in labels.items()}


def test_a_study_is_searched_for_the_findings_of_its_region() -> None:
    findings = read_findings("")
    knee = {finding.name for finding in findings_of(findings, "knee")}
    assert "effusion" in knee and "mass" not in knee
    assert findings_of(findings, "unknown") == findings_of(findings, "chest") == list(findings)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("head: [", "no readable YAML file"),
        ("- mass", "must map regions"),
        ("head: {mass: {absent: [x]}}", "head.mass: a finding needs"),
        ("head: {Mass of: {present: [x]}}", "a finding needs a name"),
        ("head: {mass: {present: ['(']}}", "head.mass: an entry is no regular expression"),
        ("head: {mass: {present: [x], negated: [y]}}", "unknown key negated"),
        ("head: {mass: {present: [x]}}\nknee: {mass: {present: [x]}}", "mass stands there twice"),
    ],
)
def test_a_findings_file_that_cannot_be_used_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "f.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read_findings(str(path))
    assert "\n" not in str(caught.value)


def test_own_findings_and_their_words(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("head:\n  gliosis:\n    present: ['\\bgliosis\\b']\n    absent: ['nothing at all']\n")
    (finding,) = read_findings(str(path))
    assert mentions("Old gliosis.", [finding]) == {"gliosis": Mention(State.PRESENT, "Old gliosis.")}
    assert mentions("There is nothing at all.", [finding])["gliosis"].state is State.ABSENT


def phantom_rows(studies: int, seed: int) -> list[tuple[str, int | None, int | None]]:
    """(finding, label, truth) of phantom reports, de-identified as in a preparation; truth is None where a region has
    no such finding, 0 where the body has none, whether or not the report says so."""
    rows: list[tuple[str, int | None, int | None]] = []
    config = PhantomConfig(head_share=0.6)
    for plan in plan_population(studies, seed, config):
        rng = np.random.default_rng([seed, plan.patient.number, plan.visit])
        text = write_report(plan, draw_staff(rng), rng, config.typing_share, config.identity_share)
        report = clean_report(text, [replace(NOBODY, people=("^".join(plan.patient.name),))], 20_000)
        region = "head" if plan.patient.head else "abdomen"
        findings = findings_of(read_findings(""), region)
        labels = as_labels(mentions(report.diagnostic, findings))
        kind = KINDS[plan.lesion.kind.value] if plan.lesion is not None else ""
        truth = {name: int(name == kind) for name in KINDS.values() if any(f.name == name for f in findings)}
        if plan.patient.head:
            truth |= {
                "atrophy": int(plan.patient.atrophy_grade > 0),
                "sinus_disease": int(plan.patient.sinus != "none"),
            }
        rows += [(name, labels.get(f"report_{name}"), value) for name, value in truth.items()]
    return rows


def test_precision_and_recall_on_phantom_reports() -> None:
    """The table of docs/reports.md. The phantom's reports state every finding of the body, and nothing that is not
    so; typing slips hide some."""
    scores = score(phantom_rows(600, 5))
    print("\n" + table(scores))
    for found in scores:
        assert found.precision.hits >= 0.97 * found.precision.of > 0, found
        assert found.recall.hits >= 0.95 * found.recall.of > 0, found
        assert found.denied_precision.hits >= 0.97 * found.denied_precision.of > 0, found


def test_a_sheet_is_scored_by_what_is_filled_in(tmp_path: Path) -> None:
    path = tmp_path / "sheet.csv"
    cells = [("mass", "y", "y"), ("mass", "y", "n"), ("mass", "-", "Y"), ("mass", "n", "n"), ("mass", "n", "-"),
             ("mass", "y", ""), ("stroke", "-", "-")]  # fmt: skip
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(("k", *cell, "text") for cell in cells)
    mass, stroke, everything = score(read_sheet(path))
    assert (mass.precision, mass.recall, mass.denied_precision) == (Rate(1, 2), Rate(1, 2), Rate(1, 2))
    assert (stroke.precision, stroke.recall) == (Rate(0, 0), Rate(0, 0))
    assert everything.precision == Rate(1, 2)
    assert str(Rate(95, 100)) == "0.950 (0.887 to 0.984), 95 of 100", "Clopper and Pearson"
    assert str(Rate(0, 0)) == "– (0 of 0)"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("study,finding,labeller,truth\nk,mass,y,\n", "no truth is filled in"),
        ("study,finding,labeller,truth\nk,mass,y,perhaps\n", "row 1: truth=perhaps is none of y, n and -"),
        ("study,finding\nk,mass\n", "row 1: needs the columns"),
    ],
)
def test_a_sheet_that_cannot_be_read_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "sheet.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        read_sheet(path)
