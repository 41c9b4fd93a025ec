"""Patient-level splits: keyed order, strata, sites and a time span held out whole, duplicates together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_prep.headers import Header
from data_prep.keys import Keyring
from data_prep.splits import Candidate, assign, late_studies, site_of, split_patients
from fm.config.errors import ConfigError, UserError
from fm.config.prepare import PrepareConfig

from .conftest import MakeSeries


def candidate(number: int, keyring: Keyring, **changes: Any) -> Candidate:
    place = f"Hospital {number % 3}"
    plain = {
        "study": f"s{number:03d}",
        "patient": f"p{number // 2:03d}",
        "site": keyring.site(place),
        "late": False,
        "words": {"lesion": number // 2 % 4 == 0, "sex": "f"},
    }
    return Candidate(**(plain | changes))


def test_the_split_meets_its_share_and_keeps_its_order(keyring: Keyring) -> None:
    patients = [f"p{n}" for n in range(50)]
    split = split_patients(patients, 0.4, 0, keyring)
    assert sum(where == "test" for where in split.values()) == 20
    fewer = split_patients(patients, 0.2, 0, keyring)
    assert {p for p, where in fewer.items() if where == "test"} < {p for p, where in split.items() if where == "test"}
    assert split_patients(patients[::-1], 0.4, 0, keyring) == split
    assert split_patients(patients, 0.4, 1, keyring) != split
    assert set(split_patients(patients, 0.0, 0, keyring).values()) == {"train"}
    assert sorted(split_patients(["a", "b"], 0.01, 0, keyring).values()) == ["test", "train"]


def test_without_wishes_the_split_is_that_of_the_patients_alone(keyring: Keyring) -> None:
    studies = [candidate(n, keyring) for n in range(60)]
    plain = split_patients([s.patient for s in studies], 0.2, 0, keyring)
    assert assign(studies, [], PrepareConfig(), keyring) == plain
    assert assign(studies[::-1], [], PrepareConfig(), keyring) == plain


def test_each_stratum_gives_its_share(keyring: Keyring) -> None:
    studies = [candidate(n, keyring) for n in range(160)]
    split = assign(studies, [], PrepareConfig(stratify=["lesion"], test_fraction=0.25), keyring)
    with_lesion = {s.patient for s in studies if s.words["lesion"]}
    assert sum(split[p] == "test" for p in with_lesion) == 5 and len(with_lesion) == 20
    assert sum(split[p] == "test" for p in split if p not in with_lesion) == 15
    with pytest.raises(UserError, match=r"prepare\.stratify: no study has 'tumour'; choose among lesion, sex"):
        assign(studies, [], PrepareConfig(stratify=["tumour"]), keyring)


def test_an_external_site_is_held_out_whole_with_its_patients(keyring: Keyring) -> None:
    studies = [candidate(n, keyring) for n in range(60)]
    split = assign(studies, [], PrepareConfig(external_sites=["HOSPITAL  1"]), keyring)
    outside = {s.patient for s in studies if s.site == keyring.site("Hospital 1")}
    assert {p for p, where in split.items() if where == "external"} == outside
    assert set(split.values()) == {"train", "test", "external"}
    with pytest.raises(UserError, match=r"no study of this input comes from 'Hospital 9'"):
        assign(studies, [], PrepareConfig(external_sites=["Hospital 9"]), keyring)


def test_a_later_time_span_is_held_out_whole(keyring: Keyring) -> None:
    studies = [candidate(n, keyring, late=n >= 50) for n in range(60)]
    split = assign(studies, [], PrepareConfig(), keyring)
    assert {p for p, where in split.items() if where == "later"} == {f"p{n:03d}" for n in range(25, 30)}


def test_patients_who_share_a_volume_are_in_one_split(keyring: Keyring) -> None:
    studies = [candidate(n, keyring) for n in range(60)]
    alone = assign(studies, [], PrepareConfig(), keyring)
    apart = (next(p for p in alone if alone[p] == "train"), next(p for p in alone if alone[p] == "test"))
    third = next(p for p in alone if alone[p] == "train" and p != apart[0])
    joined = assign(studies, [apart, (apart[1], third)], PrepareConfig(), keyring)
    assert joined[apart[0]] == joined[apart[1]] == joined[third]


def test_who_stands_stays_and_new_patients_follow_the_rules(keyring: Keyring) -> None:
    config = PrepareConfig(external_sites=["Hospital 1"])
    old = [candidate(n, keyring, site="elsewhere") for n in range(60)]
    standing = assign(old, [], PrepareConfig(), keyring)
    new = [candidate(n, keyring, late=n >= 100) for n in range(60, 120)]
    split = assign([*old, *new], [], config, keyring, standing)
    assert {p: split[p] for p in standing} == standing
    outside = {s.patient for s in new if s.site == keyring.site("Hospital 1")}
    assert {p for p, where in split.items() if where == "external"} == outside
    assert {p for p, where in split.items() if where == "later"} == {s.patient for s in new if s.late} - outside
    sides = [where for where in split.values() if where in ("train", "test")]
    assert sides.count("test") == round(0.2 * len(sides))
    held = next(p for p in standing if standing[p] == "test")
    copy = next(s.patient for s in new if s.patient in outside)
    assert assign([*old, *new], [(held, copy)], config, keyring, standing)[copy] == "test"
    both = next(p for p in standing if standing[p] == "train")
    joined = assign([*old, *new], [(held, both)], config, keyring, standing)
    assert {p: joined[p] for p in standing} == standing


def test_dates_decide_and_stay_behind(
    make_series: MakeSeries, read: Callable[[Sequence[Path]], list[Header]], keyring: Keyring
) -> None:
    studies = [
        (keyring.study(name), read(make_series(folder=f"in/{name}", study=name, StudyDate=date))[0])
        for name, date in (("a", "20191231"), ("b", "20200101"))
    ]
    assert late_studies(studies, "") == set()
    assert late_studies(studies, "20200101") == {keyring.study("b")}
    studies.append((keyring.study("c"), read(make_series(folder="in/c", study="c", StudyDate=""))[0]))
    with pytest.raises(UserError, match=r"prepare\.external_after: study [0-9a-f]{20} has no StudyDate"):
        late_studies(studies, "20200101")
    with pytest.raises(ConfigError, match="give a day as YYYYMMDD"):
        PrepareConfig(external_after="2020-01-01")


def test_a_site_is_the_institution_else_the_issuer_else_the_configured_one(
    make_series: MakeSeries, read: Callable[[Sequence[Path]], list[Header]], keyring: Keyring
) -> None:
    named = read(make_series(folder="in/a"))
    issued = read(make_series(folder="in/b", InstitutionName=None, IssuerOfPatientID="KH-NORD"))
    nobody = read(make_series(folder="in/c", InstitutionName=None))
    assert [site_of(h, "ours") for h in (named, issued, nobody)] == ["Brookwater General", "KH-NORD", "ours"]
    assert keyring.site(" brookwater  GENERAL") == keyring.site("Brookwater General") != keyring.site("KH-NORD")
    assert keyring.site(" ") == ""
