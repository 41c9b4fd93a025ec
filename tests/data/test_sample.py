from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fm.data.sample import (
    Acquisition,
    Agent,
    Contrast,
    DixonPart,
    Evidence,
    FatSuppression,
    Plane,
    Report,
    Role,
    SampleError,
    SeriesMeta,
    StudyMeta,
    from_json,
    to_json,
)


def series(**changes: object) -> SeriesMeta:
    plain = SeriesMeta(
        name="t1w_c",
        contrast=Contrast.T1W,
        role=Role.ORIGINAL,
        plane=Plane.AXIAL,
        shape=(2, 3, 4),
        spacing_mm=(5.0, 1.0, 1.0),
        affine=[[0.0, 0.0, 1.0, 3.0], [0.0, 1.0, 0.0, -2.0], [5.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]],
        slice_position_mm=[0.0, 5.0],
        slice_valid=[True, False],
        frame_of_reference=0,
        foreground=((0, 0, 1), (2, 3, 4)),
        intensity_scale=0.5,
        intensity_offset=0.0,
        intensity_low=1.0,
        intensity_high=99.0,
        agent=Agent.YES,
    )
    return replace(plain, **changes)


def study(**changes: object) -> StudyMeta:
    plain = StudyMeta(
        key="a1", patient="p1", region="head", series=[series()], age=44, sex="f", labels={"x": 1, "y": "z"}
    )
    return replace(plain, **changes)


def test_a_study_survives_its_json_member() -> None:
    full = study(report=Report(findings="Ödem links.", impression="x"))
    assert from_json(to_json(full)) == full


def test_what_was_recognised_survives_with_its_evidence() -> None:
    told = series(
        region="abdomen",
        fat_suppression=FatSuppression.YES,
        acquisition=Acquisition.THREE_D,
        dixon=DixonPart.WATER,
        evidence={"contrast": Evidence(confidence=0.95, rule="image type dixon")},
    )
    found = from_json(to_json(study(series=[told]))).series[0]
    assert found == told
    assert isinstance(found.fat_suppression, FatSuppression) and isinstance(found.dixon, DixonPart)


def test_a_study_without_the_later_fields_is_read() -> None:
    raw = json.loads(to_json(study()))
    for name in ("region", "fat_suppression", "acquisition", "dixon", "evidence"):
        del raw["series"][0][name]
    assert from_json(json.dumps(raw).encode()) == study()


def test_equal_studies_give_equal_bytes() -> None:
    assert to_json(study(labels={"x": 1, "y": "z"})) == to_json(study(labels={"y": "z", "x": 1}))


def test_only_findings_and_impression_are_matched_with_images() -> None:
    report = Report(findings="a", impression="b", technique="T1w", history="44 years, female")
    assert report.diagnostic == "a\nb"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key": "a.1"}, "key"),
        ({"key": "A1"}, "key"),
        ({"age": 90}, "age"),
        ({"age": -1}, "age"),
        ({"age": "91"}, "age"),
        ({"format_version": 2}, "version"),
        ({"series": [series(), series()]}, "repeat"),
        ({"series": [series(name="t1w.x")]}, "name"),
        ({"series": [series(slice_valid=[True])]}, "slice_valid"),
        ({"series": [series(foreground=((0, 0, 0), (3, 3, 4)))]}, "foreground"),
        ({"series": [series(intensity_scale=float("nan"))]}, "finite"),
        ({"series": [series(spacing_mm=(0.0, 1.0, 1.0))]}, "spacing"),
        ({"series": [series(evidence={"contrast": Evidence(confidence=1.2, rule="words")})]}, "evidence"),
        ({"series": [series(evidence={"contrast": Evidence(confidence=0.9, rule="Okonkwo")})]}, "evidence"),
    ],
)
def test_what_breaks_the_contract_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(SampleError, match=words):
        to_json(study(**changes))


@pytest.mark.parametrize("payload", [b"", b"\xff", b"[]", b"1", b"[" * 100_000, b'{"key": "a"}', b"\x80\x04K\x01."])
def test_junk_is_a_sample_error(payload: bytes) -> None:
    with pytest.raises(SampleError):
        from_json(payload)


@pytest.mark.parametrize("field", ["patient_name", "study_date"])
def test_an_unknown_field_is_refused(field: str) -> None:
    raw = json.loads(to_json(study()))
    with pytest.raises(SampleError):
        from_json(json.dumps({**raw, field: "x"}).encode())
    raw["series"][0][field] = "x"
    with pytest.raises(SampleError, match=field):
        from_json(json.dumps(raw).encode())
