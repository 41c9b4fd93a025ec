from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import comb

import numpy as np
import pytest
from scipy.stats import chi2_contingency
from sklearn.metrics import roc_auc_score

from data_prep.phantom.plan import StudyPlan, liability_weight, plan_population
from data_prep.phantom.reports import findings_tuple
from data_prep.phantom.signal import Weighting
from data_prep.phantom.sites import SITES
from fm.config.errors import ConfigError
from fm.config.phantom import Confound, PhantomConfig

COUNT = 4000


@pytest.fixture(scope="module")
def plans() -> list[StudyPlan]:
    return plan_population(COUNT, 11, PhantomConfig(repeat_share=0.0))


def independence(plans: list[StudyPlan], group) -> float:
    """p value of a chi-square test of lesion presence against a grouping."""
    table = Counter((group(plan), plan.lesion is not None) for plan in plans)
    groups = sorted({key for key, _ in table}, key=str)
    counts = np.array([[table[key, sick] for sick in (False, True)] for key in groups])
    return float(chi2_contingency(counts[counts.sum(axis=1) >= 20]).pvalue)


GROUPS = {
    "site": lambda p: p.site,
    "protocol": lambda p: p.protocol,
    "acquired": lambda p: tuple(s.weighting for s in p.series),
    "region": lambda p: p.region,
    "sex": lambda p: p.patient.sex,
    "age": lambda p: p.age_years // 10,
    "plane": lambda p: tuple(s.plane for s in p.series),
    "sinus": lambda p: (p.region, p.patient.sinus),
    "atrophy": lambda p: (p.region, p.patient.atrophy_grade),
    "gap": lambda p: any(s.drop_slice for s in p.series),
    "weekday": lambda p: p.moment.weekday(),
}


@pytest.mark.parametrize("name", GROUPS)
def test_lesions_do_not_depend_on(plans: list[StudyPlan], name: str) -> None:
    # The plan is fixed by its seed: this is a bound on that draw, not a test that fails one time in a thousand.
    assert independence(plans, GROUPS[name]) > 1e-3


@pytest.mark.parametrize("confound", [Confound.site, Confound.sequence])
def test_a_planted_shortcut_shows(confound: Confound) -> None:
    plans = plan_population(1500, 1, PhantomConfig(confound=confound))
    name = "site" if confound is Confound.site else "protocol"
    assert independence(plans, GROUPS[name]) < 1e-20
    if confound is Confound.site:
        raised = np.mean([p.lesion is not None for p in plans if p.site % 2 == 0])
        lowered = np.mean([p.lesion is not None for p in plans if p.site % 2])
        assert raised == pytest.approx(0.92, abs=0.04) and lowered == pytest.approx(0.28, abs=0.05)


def test_shares_are_the_configured_ones(plans: list[StudyPlan]) -> None:
    heads = [p for p in plans if p.patient.head]
    sick = [p for p in plans if p.lesion is not None]
    assert len(heads) / COUNT == pytest.approx(0.65, abs=0.03)
    assert len(sick) / COUNT == pytest.approx(0.6, abs=0.03)
    assert np.mean([p.patient.atrophy_grade > 0 for p in heads]) == pytest.approx(0.45, abs=0.03)
    assert np.mean([p.patient.sinus != "none" for p in heads]) == pytest.approx(0.5, abs=0.03)
    grades = Counter(p.lesion.grade for p in sick if p.lesion)
    assert grades["easy"] / len(sick) == pytest.approx(0.7, abs=0.03)
    assert grades["hard"] / len(sick) == pytest.approx(0.1, abs=0.03)
    sides = Counter(p.lesion.side for p in sick if p.lesion)
    assert sides["left"] / len(sick) == pytest.approx(0.5, abs=0.04)


def test_ideal_observers(plans: list[StudyPlan]) -> None:
    heads = [p for p in plans if p.patient.head]
    for group in (heads, [p for p in plans if not p.patient.head]):
        sex = roc_auc_score([p.patient.sex == "M" for p in group], [p.patient.size_latent for p in group])
        assert sex == pytest.approx(0.85, abs=0.025)
    age = roc_auc_score([p.patient.atrophy_grade > 0 for p in heads], [p.age_years for p in heads])
    assert age == pytest.approx(0.7, abs=0.03)
    assert liability_weight(0.5, 0.45) == pytest.approx(0, abs=1e-9)


def test_a_longer_plan_begins_with_the_shorter() -> None:
    config = PhantomConfig(repeat_share=0.5)
    assert plan_population(60, 2, config)[:25] == plan_population(25, 2, config)
    assert plan_population(25, 3, config) != plan_population(25, 2, config)


def test_repeat_visits_are_of_the_same_person() -> None:
    plans = plan_population(300, 4, PhantomConfig(repeat_share=0.6))
    later = [p for p in plans if p.visit]
    assert len(later) > 60
    first = {p.patient.number: p for p in plans if not p.visit}
    grown = []
    for plan in later:
        start = first[plan.patient.number]
        assert plan.patient == start.patient and plan.moment > start.moment and plan.previous is not None
        assert (plan.lesion is None) == (start.lesion is None)
        if plan.lesion and start.lesion:
            assert replace(plan.lesion, size_mm=0) == replace(start.lesion, size_mm=0)
            grown.append(plan.lesion.size_mm - start.lesion.size_mm)
    assert min(grown) >= -1e-9 and np.mean(grown) > 1


def test_series_make_sense(plans: list[StudyPlan]) -> None:
    shown = 0
    for plan in plans:
        weightings = [s.weighting for s in plan.series]
        assert 1 <= len(weightings) <= 4
        assert Weighting.ADC not in weightings or Weighting.DWI in weightings
        assert Weighting.T1W_C not in weightings or SITES[plan.site].field_t > 0.5
        assert plan.patient.head or SITES[plan.site].abdomen
        assert not plan.patient.head or plan.age_years == pytest.approx(
            (plan.moment.date() - plan.patient.birth_date).days / 365.25, abs=1
        )
        shown += bool({Weighting.T2W, Weighting.FLAIR, Weighting.DWI, Weighting.T1W_C} & set(weightings))
    assert shown / COUNT > 0.97
    for name in ("accession", "study_uid", "frame_uid"):
        assert len({getattr(p, name) for p in plans}) == COUNT
    assert len({p.patient.patient_id for p in plans}) == len({p.patient.number for p in plans})


def test_findings_are_diverse(plans: list[StudyPlan]) -> None:
    """Chance R@5 within heads, for a gallery of 200, is 8 to 16 %."""
    words = [findings_tuple(p) for p in plans if p.patient.head][:200]
    counts, total = Counter(words), len(words)
    chance = np.mean([1 - comb(total - counts[w], 5) / comb(total, 5) for w in words])
    assert 0.08 < chance < 0.16


@pytest.mark.parametrize(
    "values", [{"head_share": 1.2}, {"easy_share": 0.9}, {"sex_auroc": 0.3}, {"noise_scale": -1.0}, {"age_sd_years": 0}]
)
def test_impossible_populations_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values)).split("_")[0]):
        PhantomConfig(**values)
