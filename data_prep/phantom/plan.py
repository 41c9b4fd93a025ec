"""The population: who is scanned where, when and how, and what is found. Cheap, and a pure function of the seed."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from pydicom.uid import generate_uid

from data_prep.phantom.lesions import ABDOMEN_KINDS, HEAD_KINDS, PLAQUE_SHARE, SITES, SIZE_MM, LesionKind, LesionPlan
from data_prep.phantom.names import person
from data_prep.phantom.signal import Weighting
from data_prep.phantom.sites import SITES as SCANNERS
from data_prep.phantom.sites import draw_protocol
from fm.config.phantom import Confound, PhantomConfig, Resolution

UNIT = NormalDist()
LARGEST_MM = 50.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """A person and the anatomy that stays theirs."""

    number: int
    patient_id: str
    name: tuple[str, str]
    sex: str
    birth_date: dt.date
    head: bool
    size_latent: float
    """Standard score of the anatomy's size; its class means alone differ between the sexes."""
    atrophy_grade: int
    sinus: str
    lesion: LesionPlan | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesPlan:
    """One series to acquire."""

    number: int
    uid: str
    weighting: Weighting
    plane: str
    drop_slice: bool
    motion: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPlan:
    """One visit of one patient."""

    index: int
    patient: Patient
    visit: int
    """0 for the first."""
    moment: dt.datetime
    age_years: int
    accession: str
    study_uid: str
    frame_uid: str
    site: int
    """Index into :data:`data_prep.phantom.sites.SITES`."""
    protocol: tuple[Weighting, ...]
    series: tuple[SeriesPlan, ...]
    lesion: LesionPlan | None
    previous: dt.date | None
    """Date of the visit before."""

    @property
    def region(self) -> str:
        """BodyPartExamined."""
        return "HEAD" if self.patient.head else "ABDOMEN"


def plan_population(studies: int, seed: int, config: PhantomConfig) -> list[StudyPlan]:
    """The first `studies` visits of the population; a longer plan begins with the shorter one."""
    plans: list[StudyPlan] = []
    number = 0
    while len(plans) < studies:
        plans.extend(_visits(number, len(plans), seed, config))
        number += 1
    return plans[:studies]


def separation(auroc: float) -> float:
    """Distance of two unit normal distributions whose ideal AUROC is given."""
    return 2**0.5 * UNIT.inv_cdf(auroc)


def liability_weight(auroc: float, prevalence: float) -> float:
    """Correlation of age with a thresholded normal liability for which age's AUROC is about as given."""
    if not 0 < prevalence < 1:
        return 0.0
    density = UNIT.pdf(UNIT.inv_cdf(prevalence))
    gap = density / (prevalence * (1 - prevalence))
    distance = separation(auroc)
    return float(min(0.99, distance / (gap**2 + distance**2 * density * gap) ** 0.5))


def _atrophy(rng: np.random.Generator, age_score: float, config: PhantomConfig) -> int:
    prevalence = config.atrophy_prevalence
    rho = liability_weight(config.atrophy_age_auroc, prevalence)
    rank = UNIT.cdf(rho * age_score + (1 - rho**2) ** 0.5 * float(rng.standard_normal()))
    return 2 if rank > 1 - 0.45 * prevalence else 1 if rank > 1 - prevalence else 0


def _prevalence(config: PhantomConfig, site: int, protocol: tuple[Weighting, ...]) -> float:
    base = config.lesion_prevalence
    if config.confound is Confound.none:
        return base
    if config.confound is Confound.site:
        raised = site % 2 == 0
    else:
        raised = bool({Weighting.T1W_C, Weighting.DWI} & set(protocol))
    shift = config.confound_strength * min(base, 1 - base)
    return base + shift if raised else base - shift


def _lesion(rng: np.random.Generator, head: bool, config: PhantomConfig) -> LesionPlan:
    kinds = HEAD_KINDS if head else ABDOMEN_KINDS
    kind = kinds[int(rng.integers(len(kinds)))]
    site = SITES[kind][int(rng.integers(len(SITES[kind])))]
    rank = float(rng.random())
    grade = (
        "easy" if rank < config.easy_share else "medium" if rank < config.easy_share + config.medium_share else "hard"
    )
    low, high = SIZE_MM[config.resolution.value][grade]
    share = PLAQUE_SHARE if kind is LesionKind.PLAQUES else 1.0
    floor = 15.0 if config.resolution is Resolution.demo else 3.0
    return LesionPlan(
        kind=kind,
        side=("left", "right")[int(rng.integers(2))],
        site=site,
        grade=grade,
        size_mm=round(max(floor, share * float(rng.uniform(low, high))), 1),
    )


def _scanner(rng: np.random.Generator, head: bool) -> int:
    allowed = [k for k, site in enumerate(SCANNERS) if head or site.abdomen]
    return allowed[int(rng.integers(len(allowed)))]


def _visits(number: int, first: int, seed: int, config: PhantomConfig) -> list[StudyPlan]:
    """All visits of one patient. Each trait has its own stream, so that no draw leans on another."""
    streams = np.random.default_rng([seed, number]).spawn(6)
    who, body, lesion_rng, place, when, gaps = streams
    head = bool(body.random() < config.head_share)
    sex = "F" if who.random() < 0.5 else "M"
    age_score = float(np.clip(who.standard_normal(), -2.4, 2.4))
    age = int(np.clip(round(config.age_mean_years + config.age_sd_years * age_score), 18, 97))
    site = _scanner(place, head)
    protocol = draw_protocol(place, SCANNERS[site], head)
    sick = bool(lesion_rng.random() < _prevalence(config, site, protocol))
    lesion = _lesion(lesion_rng, head, config) if sick else None
    moment = dt.datetime(2015, 1, 5) + dt.timedelta(
        days=int(when.integers(0, 3400)), seconds=int(when.integers(7 * 3600, 19 * 3600))
    )
    patient = Patient(
        number=number,
        patient_id=f"{(2_000_003 + (number + 1) * 7_368_787 + seed * 31_337) % 89_999_999 + 10_000_000}",
        name=person(who, sex),
        sex=sex,
        birth_date=moment.date() - dt.timedelta(days=int(age * 365.25) + int(who.integers(5, 355))),
        head=head,
        size_latent=float(body.standard_normal()) + (0.5 if sex == "M" else -0.5) * separation(config.sex_auroc),
        atrophy_grade=_atrophy(body, age_score, config) if head else 0,
        sinus=("none", "left", "right")[1 + int(body.integers(2)) if body.random() < config.sinus_prevalence else 0]
        if head
        else "none",
        lesion=lesion,
    )
    count = 1 + int(when.random() < config.repeat_share) + int(when.random() < 0.2 * config.repeat_share)
    plans: list[StudyPlan] = []
    for visit in range(count):
        if visit and config.confound is Confound.none:
            site = _scanner(place, head)
            protocol = draw_protocol(place, SCANNERS[site], head)
        plans.append(_study(patient, visit, first + visit, seed, moment, site, protocol, gaps, plans, config))
        moment += dt.timedelta(days=int(when.integers(60, 700)), seconds=int(when.integers(-3000, 3000)))
    return plans


def _study(
    patient: Patient,
    visit: int,
    index: int,
    seed: int,
    moment: dt.datetime,
    site: int,
    protocol: tuple[Weighting, ...],
    rng: np.random.Generator,
    earlier: list[StudyPlan],
    config: PhantomConfig,
) -> StudyPlan:
    key = f"{seed}/{patient.number}/{visit}"
    lesion = patient.lesion
    if lesion is not None and visit and earlier[-1].lesion is not None:
        grown = min(LARGEST_MM, earlier[-1].lesion.size_mm * float(rng.uniform(1.0, 1.25)))
        lesion = LesionPlan(
            kind=lesion.kind, side=lesion.side, site=lesion.site, grade=lesion.grade, size_mm=round(grown, 1)
        )
    return StudyPlan(
        index=index,
        patient=patient,
        visit=visit,
        moment=moment,
        age_years=(moment.date() - patient.birth_date).days * 4 // 1461,
        accession=f"{SCANNERS[site].code[0]}{moment:%y}{(patient.number * 8191 + visit * 131 + seed) % 9_999_991:07d}",
        study_uid=generate_uid(entropy_srcs=["study", key]),
        frame_uid=generate_uid(entropy_srcs=["frame", key]),
        site=site,
        protocol=protocol,
        series=_series(key, protocol, patient.head, rng, config),
        lesion=lesion,
        previous=earlier[-1].moment.date() if earlier else None,
    )


def _series(
    key: str, protocol: tuple[Weighting, ...], head: bool, rng: np.random.Generator, config: PhantomConfig
) -> tuple[SeriesPlan, ...]:
    """The protocol's series that were acquired; at least one is."""
    series = []
    draws = rng.random((len(protocol), 5))
    keep = draws[:, 0] >= config.missing_series_share
    if Weighting.ADC in protocol and not keep[protocol.index(Weighting.DWI)]:
        keep[protocol.index(Weighting.ADC)] = False
    if not keep.any():
        keep[int(rng.integers(len(protocol)))] = True
    for k, weighting in enumerate(protocol):
        if not keep[k]:
            continue
        structural = weighting not in (Weighting.DWI, Weighting.ADC)
        plane = ("sagittal", "coronal")[int(draws[k, 4] < 0.5)] if draws[k, 1] < config.nonaxial_share else "axial"
        series.append(
            SeriesPlan(
                number=2 + k,
                uid=generate_uid(entropy_srcs=["series", key, str(k)]),
                weighting=weighting,
                plane=plane if structural and head else "axial",
                drop_slice=bool(structural and draws[k, 2] < config.missing_slice_share),
                motion=bool(structural and draws[k, 3] < config.motion_share),
            )
        )
    return tuple(series)
