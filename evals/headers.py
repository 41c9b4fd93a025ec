"""The header-only baseline: what a study's DICOM headers say without one voxel.

A scanner protocol, an age or the set of sequences can give a diagnosis away; a probe on pixels has to beat this table.
"""

from __future__ import annotations

from evals.cohort import Cohort
from evals.tables import FeatureTable
from fm.data.sample import Agent, SeriesMeta, StudyMeta

Row = dict[str, float | str | None]


def study_headers(cohort: Cohort) -> FeatureTable:
    """(N, C) patient, scanner and set of series; per sequence kind, the protocol of its first series."""
    rows: list[Row] = []
    for study in cohort.studies:
        row: Row = {**_patient(study), "series_count": float(len(study.series))}
        for series in reversed(study.series):
            kind = sequence_kind(series)
            row |= {
                f"{kind}:{name}": value for name, value in _protocol(series).items() if name not in ("vendor", "plane")
            }
            row |= {"vendor": series.vendor, "field_strength_t": series.field_strength_t, "plane": series.plane}
        rows.append(row)
    kinds = sorted({sequence_kind(series) for _, series in cohort.series})
    for row, study in zip(rows, cohort.studies, strict=True):
        present = {sequence_kind(series) for series in study.series}
        row |= {f"{kind}:contrast": float(kind in present) for kind in kinds}
    return FeatureTable.of(rows)


def series_headers(cohort: Cohort) -> FeatureTable:
    """(P, C) protocol of the probed series, and its study's patient."""
    rows: list[Row] = []
    for at, series in cohort.probed:
        study = cohort.studies[at]
        rows.append({**_patient(study), **_protocol(series), "contrast": str(series.contrast)})
    return FeatureTable.of(rows)


def sequence_kind(series: SeriesMeta) -> str:
    """The sequence as a slot of a study: its contrast, and whether contrast agent was given."""
    return f"{series.contrast}+c" if series.agent is Agent.YES else str(series.contrast)


def _patient(study: StudyMeta) -> Row:
    age = 90.0 if study.age == "90+" else study.age
    return {"region": study.region, "age": age, "sex": study.sex}


def _protocol(series: SeriesMeta) -> Row:
    row: Row = {
        "repetition_time_ms": series.repetition_time_ms,
        "echo_time_ms": series.echo_time_ms,
        "inversion_time_ms": series.inversion_time_ms,
        "flip_angle_deg": series.flip_angle_deg,
        "b_value": series.b_value,
        "field_strength_t": series.field_strength_t,
        "vendor": series.vendor,
        "plane": str(series.plane),
    }
    for axis, size, spacing in zip("dhw", series.shape, series.spacing_mm, strict=True):
        row |= {f"shape_{axis}": float(size), f"spacing_{axis}_mm": float(spacing)}
    return row
