"""Which patients are trained on, held out, or belong to a later time or another site: by keyed order, never by chance.

A patient is in one split with all studies, and so are patients who share a duplicate volume.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from data_prep.headers import Header
from data_prep.keys import Keyring
from fm.config.errors import UserError
from fm.config.prepare import PrepareConfig
from fm.data.sample import LabelValue

EXTERNAL, LATER = "external", "later"
"""Splits of the sites and of the time span that are held out whole."""
HELD_WHOLE = (EXTERNAL, LATER)


@dataclass(kw_only=True, slots=True)
class Candidate:
    """What the split of one study depends on."""

    study: str
    patient: str
    site: str
    """Keyed id."""
    late: bool
    """From the day on that prepare.external_after names."""
    words: dict[str, LabelValue | None] = field(default_factory=dict)
    """Values to stratify by: labels, sex, region, site, vendor."""


def assign(
    studies: Sequence[Candidate],
    pairs: Iterable[tuple[str, str]],
    config: PrepareConfig,
    keyring: Keyring,
    standing: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Split of each study's patient, by pseudonym.

    Patients whose split stands keep it; a new one who shares a volume with one of them joins that split, whatever the
    other rules say, so that no copy of what is trained on is evaluated on.

    Args:
        studies: all of them, old and new.
        pairs: patients who share a duplicate volume.
        config: shares, sites, strata.
        keyring: gives the order and the sites' ids.
        standing: splits of the patients of the dataset that is appended to.

    Raises:
        UserError: a site or a word to stratify by that no study has.
    """
    standing = standing or {}
    group = _groups(studies, pairs)
    fixed: dict[str, str] = {}
    for patient in sorted(standing):
        fixed.setdefault(group[patient], standing[patient])
    sites = _sites(studies, config, keyring)
    held: dict[str, str] = {}
    strata: dict[str, str] = {}
    for study in sorted(studies, key=lambda study: study.study):
        unit = group[study.patient]
        if study.site and study.site in sites:
            held[unit] = EXTERNAL
        elif study.late:
            held.setdefault(unit, LATER)
        strata.setdefault(unit, "/".join(str(study.words.get(name)) for name in config.stratify))
    splits = held | fixed
    fraction, seed = config.test_fraction, config.split_seed
    for stratum in sorted(set(strata.values())):
        units = [unit for unit in sorted(strata) if strata[unit] == stratum and splits.get(unit) not in HELD_WHOLE]
        before = {unit: fixed[unit] for unit in units if unit in fixed}
        if before:
            splits |= extend_splits(before, units, fraction, seed, keyring)
        else:
            splits |= split_patients(units, fraction, seed, keyring)
    return {study.patient: standing.get(study.patient, splits[group[study.patient]]) for study in studies}


def split_patients(patients: Sequence[str], fraction: float, seed: int, keyring: Keyring) -> dict[str, str]:
    """'test' for the first share of the patients in keyed order, 'train' for the rest.

    The share is met exactly (rounded; at least one patient on each side where there are two and a share is wanted),
    and the order depends on key, seed and pseudonyms alone.
    """
    order = _keyed(patients, seed, keyring)
    held = round(fraction * len(order))
    if fraction > 0 and len(order) > 1:
        held = min(max(held, 1), len(order) - 1)
    return {patient: "test" if rank < held else "train" for rank, patient in enumerate(order)}


def extend_splits(
    standing: Mapping[str, str], patients: Iterable[str], fraction: float, seed: int, keyring: Keyring
) -> dict[str, str]:
    """Splits of patients old and new: the old stay where they were, the new fill up the share in keyed order."""
    new = _keyed([patient for patient in patients if patient not in standing], seed, keyring)
    held = round(fraction * (len(standing) + len(new))) - sum(split == "test" for split in standing.values())
    return dict(standing) | {patient: "test" if rank < held else "train" for rank, patient in enumerate(new)}


def site_of(headers: Sequence[Header], fallback: str) -> str:
    """Name of the institution that a study comes from: its own, else the issuer's, else prepare.site."""
    identity = headers[0].identity
    return identity.institution or identity.issuer or fallback


def late_studies(studies: Iterable[tuple[str, Header]], day: str) -> set[str]:
    """Keys of the studies from `day` on (YYYYMMDD), by the date in the header; the date itself stays here.

    Args:
        studies: key and first header of each.
        day: none is late where it is empty.

    Raises:
        UserError: a study without a date, which could be on either side.
    """
    if not day:
        return set()
    late = set()
    for key, header in studies:
        date = header.identity.study_date.strip()
        if len(date) != 8 or not date.isdigit():
            raise UserError(
                f"prepare.external_after: study {key} has no StudyDate, so nobody can say on which side it lies; leave "
                "it out of the input or mend its header"
            )
        if date >= day:
            late.add(key)
    return late


def _sites(studies: Sequence[Candidate], config: PrepareConfig, keyring: Keyring) -> set[str]:
    """Ids of prepare.external_sites, all of which some study comes from; prepare.stratify is looked over as well."""
    sites = {name: keyring.site(name) for name in config.external_sites}
    there = {study.site for study in studies}
    unknown = [name for name, site in sites.items() if site not in there]
    if unknown:
        raise UserError(
            f"prepare.external_sites: no study of this input comes from {unknown[0]!r}; give InstitutionName (or the "
            "issuer of patient numbers where it is absent) as the headers have it"
        )
    known = {word for study in studies for word in study.words}
    if missing := [name for name in config.stratify if name not in known]:
        raise UserError(f"prepare.stratify: no study has {missing[0]!r}; choose among {', '.join(sorted(known))}")
    return set(sites.values())


def _keyed(patients: Iterable[str], seed: int, keyring: Keyring) -> list[str]:
    return sorted(set(patients), key=lambda patient: keyring.digest("split", str(seed), patient))


def _groups(studies: Sequence[Candidate], pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The first patient of each group of patients who share a volume, for every patient."""
    parent = {study.patient: study.patient for study in studies}

    def root(patient: str) -> str:
        while parent[patient] != patient:
            patient = parent[patient]
        return patient

    for one, other in pairs:
        first, second = sorted((root(one), root(other)))
        parent[second] = first
    return {patient: root(patient) for patient in parent}
