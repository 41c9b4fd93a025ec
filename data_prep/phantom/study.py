"""One study from plan to files: anatomy, lesion, series, masks, report, and the record of all that is known of it."""

from __future__ import annotations

import gzip
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from data_prep.phantom import anatomy_abdomen, anatomy_head
from data_prep.phantom.dicom import SeriesFiles, write_series
from data_prep.phantom.lesions import PlacedLesion, place
from data_prep.phantom.names import ascii_name
from data_prep.phantom.plan import SeriesPlan, StudyPlan
from data_prep.phantom.reports import draw_staff, findings_tuple, identifiers, write_report
from data_prep.phantom.scanner import (
    LPS_TO_RAS,
    Acquired,
    Camera,
    Geometry,
    acquire,
    adc_map,
    contrast_to_noise,
    draw_pose,
    draw_prescription,
    holds_lesion,
    lay_out,
)
from data_prep.phantom.signal import Weighting
from data_prep.phantom.sites import SITES, sequence
from data_prep.phantom.volume import MASK_LABELS, Codes, TissueMap
from fm.config.phantom import PhantomConfig, Resolution

STEP_MM = {Resolution.demo: (2.0, 3.0), Resolution.full: (1.0, 1.5)}
"""Lattice step of heads and abdomens by resolution."""

HEAD_SIZE_SD, TRUNK_SIZE_SD = 0.028, 0.04
"""Linear size per standard score of a patient's size."""

VENTRICLE_MM = (0.0, 3.0, 5.6)
SULCUS_MM = (0.0, 0.4, 0.8)
"""Recession of the walls by atrophy grade."""

LARGEST_SCALE = 1.7
"""Enlargement of a lesion at which another place is tried."""


@dataclass(slots=True)
class Atlases:
    """The canonical bodies that a worker needs."""

    head: anatomy_head.HeadAtlas | None
    abdomen: anatomy_abdomen.AbdomenAtlas | None


def build_atlases(resolution: Resolution, head: bool, abdomen: bool) -> Atlases:
    """The canonical bodies at a resolution's lattice step."""
    head_mm, abdomen_mm = STEP_MM[resolution]
    return Atlases(
        anatomy_head.build_atlas(head_mm) if head else None,
        anatomy_abdomen.build_atlas(abdomen_mm) if abdomen else None,
    )


def study_folder(plan: StudyPlan) -> Path:
    """Folder of a study below ``dicom/``, named as archives name them: by patient, day and accession."""
    patient = plan.patient
    person = f"{patient.patient_id}_{ascii_name(patient.name[0])}_{ascii_name(patient.name[1])}"
    return Path(person) / f"{plan.moment:%Y%m%d}_{plan.accession}"


def embody(plan: StudyPlan, atlases: Atlases, seed: int) -> tuple[TissueMap, dict[str, Any]]:
    """The patient's anatomy without lesion, the same at every visit, and its parameters."""
    patient = plan.patient
    rng = np.random.default_rng([seed, patient.number, 1])
    latent = float(np.clip(patient.size_latent, -3, 3))
    proportion = np.exp(rng.normal(0, 0.02, 3))
    proportion /= proportion.prod() ** (1 / 3)
    factors = (float(proportion[0]), float(proportion[1]), float(proportion[2]))
    if not patient.head:
        assert atlases.abdomen is not None
        trunk = anatomy_abdomen.AbdomenShape(size=1 + TRUNK_SIZE_SD * latent, proportion=factors)
        return anatomy_abdomen.instantiate(atlases.abdomen, trunk, rng), asdict(trunk)
    assert atlases.head is not None
    grade = patient.atrophy_grade
    aging = 0.012 * (plan.age_years - plan.visit - 50)
    shape = anatomy_head.HeadShape(
        size=1 + HEAD_SIZE_SD * latent,
        proportion=factors,
        ventricle_growth_mm=VENTRICLE_MM[grade] + aging + float(rng.normal(0, 0.45)),
        sulcus_growth_mm=SULCUS_MM[grade] + 0.3 * aging + float(rng.normal(0, 0.1)),
        sinus=patient.sinus,
    )
    return anatomy_head.instantiate(atlases.head, shape, rng), asdict(shape)


@dataclass(slots=True)
class _Prescribed:
    series: SeriesPlan
    geometry: Geometry
    kept: NDArray[np.bool_]


def _prescribe(plan: StudyPlan, table: NDArray[np.float64], seed: int, config: PhantomConfig) -> list[_Prescribed]:
    rng = np.random.default_rng([seed, plan.patient.number, 4, plan.visit])
    slices = draw_prescription(rng)
    prescribed = []
    for series in plan.series:
        geometry = lay_out(SITES[plan.site], series, plan.patient.head, slices, table, config.resolution)
        kept = np.ones(geometry.shape[2], bool)
        if series.drop_slice:
            kept[int(rng.integers(2, geometry.shape[2] - 2))] = False
        prescribed.append(_Prescribed(series, geometry, kept))
    return prescribed


def _lesion(
    plan: StudyPlan, camera: Camera, prescribed: list[_Prescribed], seed: int, config: PhantomConfig
) -> PlacedLesion | None:
    """Place the study's lesion; at demo resolution enlarge it until every series shows 3 × 3 voxels on 2 slices."""
    if plan.lesion is None:
        return None
    for attempt in range(6):
        scale = 1.0
        while scale < LARGEST_SCALE:
            placed = place(camera.anatomy, plan.lesion, [seed, plan.patient.number, 2, attempt], scale)
            if config.resolution is Resolution.full or all(
                holds_lesion(camera.mask(p.geometry), p.kept) for p in prescribed
            ):
                return placed
            scale *= 1.1
    raise RuntimeError(f"study {plan.index}: no place where the lesion spans 3 × 3 voxels on 2 slices")


def make_study(plan: StudyPlan, atlases: Atlases, out: Path, seed: int, config: PhantomConfig) -> dict[str, Any]:
    """Simulate and write one study; returns its record: labels, report, and everything known of every series.

    A half-written study of an earlier run is replaced.

    Raises:
        OSError: the disk is full or `out` cannot be written.
    """
    folder, masks = out / "dicom" / study_folder(plan), out / "masks" / plan.study_uid
    for stale in (folder, masks):
        shutil.rmtree(stale, ignore_errors=True)
    masks.mkdir(parents=True)
    rng = np.random.default_rng([seed, plan.patient.number, 3, plan.visit])
    anatomy, body = embody(plan, atlases, seed)
    pose, table = draw_pose(rng), np.round(rng.uniform(-25, 25, 3), 1) * (0, 1, 1)
    staff = draw_staff(rng)
    camera = Camera(anatomy, pose, table)
    prescribed = _prescribe(plan, table, seed, config)
    placed = _lesion(plan, camera, prescribed, seed, config)
    site, series_records = SITES[plan.site], []
    diffusion: Acquired | None = None
    for item in prescribed:
        series = item.series
        timing = sequence(site, series.weighting, plan.patient.head)
        mask = camera.mask(item.geometry)
        if series.weighting is Weighting.ADC:
            assert diffusion is not None
            acquired = adc_map(diffusion, site.field_t, timing, camera)
        else:
            acquired = acquire(camera, item.geometry, site, series, timing, config, rng)
        if series.weighting is Weighting.DWI:
            diffusion = acquired
        place_in = folder / f"{series.number:03d}_{ascii_name(series.weighting.value)}_{series.plane}"
        kept = [int(k) for k in np.flatnonzero(item.kept)]
        files = write_series(place_in, SeriesFiles(plan, series, staff, timing, acquired, kept))
        _write_mask(masks / f"{series.uid}.nii.gz", mask, item.geometry)
        record = _series_record(item, acquired, mask)
        series_records.append(
            {**record, "sequence": asdict(timing), "files": files, "folder": str(place_in.relative_to(out))}
        )
    text = write_report(plan, staff, rng, config.typing_share, config.identity_share)
    return {
        "index": plan.index,
        "labels": _labels(plan, placed, series_records),
        "report": text,
        "truth": _truth(plan, placed, body, pose, table, series_records)
        | {"identifiers": identifiers(plan, staff), "folder": str(folder.relative_to(out))},
    }


def _write_mask(path: Path, mask: Codes, geometry: Geometry) -> None:
    """NIfTI on the series' grid in dcm2niix's order: rows from back to front (or foot to head), slices along the
    normal."""
    flips = np.eye(4)
    flips[1, 1], flips[1, 3] = -1, geometry.shape[1] - 1
    voxels = mask[:, ::-1, :]
    normal = np.cross(geometry.row_direction, geometry.column_direction)
    if float(geometry.affine[:3, 2] @ normal) < 0:
        flips[2, 2], flips[2, 3] = -1, geometry.shape[2] - 1
        voxels = voxels[:, :, ::-1]
    image = nib.Nifti1Image(np.ascontiguousarray(voxels), LPS_TO_RAS @ geometry.affine @ flips, dtype=np.uint8)
    image.header.set_xyzt_units("mm")
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))


def _series_record(item: _Prescribed, acquired: Acquired, mask: Codes) -> dict[str, Any]:
    series, geometry = item.series, item.geometry
    seen = mask * item.kept[None, None, :].astype(np.uint8)
    lesion = np.argwhere(seen == MASK_LABELS["lesion"])
    centroid = (geometry.affine @ np.append(lesion.mean(axis=0), 1))[:3] if len(lesion) else None
    ratio = contrast_to_noise(acquired, mask)
    return {
        "series_uid": series.uid,
        "series_number": series.number,
        "contrast": series.weighting.value,
        "plane": series.plane,
        "shape_columns_rows_slices": list(geometry.shape),
        "spacing_mm": list(geometry.spacing_mm),
        "slice_thickness_mm": geometry.thickness_mm,
        "affine_lps": geometry.affine.tolist(),
        "dropped_slices": [int(k) for k in np.flatnonzero(~item.kept)],
        "motion": series.motion,
        "noise_sd": round(acquired.noise, 4),
        "voxels": {name: int((seen == value).sum()) for name, value in MASK_LABELS.items() if value},
        "lesion_voxels": len(lesion),
        "lesion_slices": len(np.unique(lesion[:, 2])),
        "lesion_centroid_lps_mm": None if centroid is None else [round(float(v), 2) for v in centroid],
        "lesion_cnr": None if ratio is None else round(ratio, 3),
    }


def _best(series: list[dict[str, Any]]) -> dict[str, Any]:
    """The series that shows the lesion best."""
    return max(series, key=lambda s: (s["lesion_cnr"] or 0.0, s["lesion_voxels"]))


def _labels(plan: StudyPlan, placed: PlacedLesion | None, series: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of labels.csv; voxels and contrast-to-noise of the series that shows the lesion best; blank: missing."""
    lesion, head = plan.lesion, plan.patient.head
    best = _best(series)
    return {
        "study_uid": plan.study_uid,
        "accession": plan.accession,
        "patient_id": plan.patient.patient_id,
        "lesion": int(lesion is not None),
        "lesion_kind": lesion.kind.value if lesion else "none",
        "lesion_side": lesion.side if lesion else "none",
        "lesion_site": lesion.site if lesion else "none",
        "lesion_grade": lesion.grade if lesion else "none",
        "lesion_size_mm": round(placed.size_mm, 1) if placed else "",
        "lesion_voxels": best["lesion_voxels"] if lesion else "",
        "lesion_cnr": best["lesion_cnr"] if lesion and best["lesion_cnr"] is not None else "",
        "atrophy": int(plan.patient.atrophy_grade > 0) if head else "",
        "atrophy_grade": plan.patient.atrophy_grade if head else "",
        "sinus": plan.patient.sinus if head else "",
        "findings": findings_tuple(plan),
    }


def _truth(
    plan: StudyPlan,
    placed: PlacedLesion | None,
    body: dict[str, Any],
    pose: NDArray[np.float64],
    table: NDArray[np.float64],
    series: list[dict[str, Any]],
) -> dict[str, Any]:
    """Everything known of a study."""
    patient, site = plan.patient, SITES[plan.site]
    acquired = {s.weighting for s in plan.series}
    return {
        "study_uid": plan.study_uid,
        "patient_number": patient.number,
        "patient_id": patient.patient_id,
        "patient_name": "^".join(patient.name),
        "sex": patient.sex,
        "age_years": plan.age_years,
        "birth_date": patient.birth_date.isoformat(),
        "size_latent": round(patient.size_latent, 5),
        "visit": plan.visit,
        "moment": plan.moment.isoformat(),
        "accession": plan.accession,
        "region": plan.region,
        "site": site.code,
        "vendor": site.vendor,
        "model": site.model,
        "field_t": site.field_t,
        "protocol": [w.value for w in plan.protocol],
        "missing_series": [w.value for w in plan.protocol if w not in acquired],
        "body": body,
        "atrophy_grade": patient.atrophy_grade if patient.head else None,
        "sinus": patient.sinus if patient.head else None,
        "lesion": asdict(plan.lesion) | asdict(placed) if plan.lesion and placed else None,
        "findings": findings_tuple(plan),
        "pose_ras": np.round(pose, 6).tolist(),
        "table_shift_lps_mm": table.tolist(),
        "series": series,
    }
