"""Names, sidecars and participants of a BIDS tree (BIDS 1.10), and of plain folders of NIfTI files.

Sidecar keys carry DICOM's names; their times are seconds.
"""

from __future__ import annotations

import csv
import json
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_prep.headers import Identity, Scan
from data_prep.ledger import Rule
from data_prep.values import number
from fm.config.prepare import Source

DESCRIPTION = "dataset_description.json"
_OTHER_FOLDERS = {"derivatives", "sourcedata", "code", "stimuli"}
_SIDECARS = (".json", ".tsv", ".bval", ".bvec", ".tsv.gz")
_MAX_SIDECAR = 2**20
_SEPARATORS = re.compile(r"[\\_,/;\s]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """What a file's place in the tree says."""

    patient: str
    study: str
    file: str
    """Path below the root."""
    stem: str
    """File name without suffix: the words of the series."""


def is_bids(root: str) -> bool:
    """Whether a folder is the root of a BIDS tree."""
    return os.path.isfile(os.path.join(root, DESCRIPTION))


def left_out(name: str) -> Rule | None:
    """The rule by which a file of a tree of NIfTI files is no scan; None where it may be one.

    Args:
        name: path below the root.
    """
    if Path(name).parts[0] in _OTHER_FOLDERS:
        return Rule.BIDS_OTHER
    if name.endswith(_SIDECARS):
        return Rule.SIDECAR
    return None if name.endswith((".nii", ".nii.gz")) else Rule.NON_DICOM


def bids_names(path: str, root: str, source: Source) -> Names:
    """Patient, study and words of a file: ``sub-`` and ``ses-`` in BIDS, else its folder or itself."""
    name = os.path.relpath(path, root)
    stem = os.path.basename(path).removesuffix(".gz").removesuffix(".nii")
    if source is Source.bids:
        entities = _entities(stem)
        patient = f"sub-{entities['sub']}" if "sub" in entities else name
        study = f"{patient}/ses-{entities['ses']}" if "ses" in entities else patient
    else:
        study = patient = name if source is Source.nifti_files else os.path.dirname(name) or "."
    return Names(patient=patient, study=study, file=name, stem=stem)


def scan_of_sidecar(path: str, root: str, names: Names) -> Scan:
    """How the image was acquired, from the JSON files that apply to it."""
    values = _sidecar(path, root)

    def text(*keys: str) -> str:
        return next((str(values[key]) for key in keys if isinstance(values.get(key), str)), "")

    def words(key: str) -> tuple[str, ...]:
        value = values.get(key)
        parts = value if isinstance(value, list) else _SEPARATORS.split(value) if isinstance(value, str) else []
        return tuple(str(part) for part in parts if part)

    def milliseconds(key: str) -> float | None:
        seconds = number(values.get(key))
        return None if seconds is None else 1000.0 * seconds

    echo, kinds = number(values.get("EchoNumber")), values.get("ImageType")
    return Scan(
        vendor=text("Manufacturer"),
        field_strength_t=number(values.get("MagneticFieldStrength")),
        scanning_sequence=words("ScanningSequence"),
        sequence_variant=words("SequenceVariant"),
        scan_options=words("ScanOptions"),
        sequence_name=text("SequenceName", "PulseSequenceName"),
        image_type=tuple(str(part) for part in kinds) if isinstance(kinds, list) else (),
        repetition_time_ms=milliseconds("RepetitionTime"),
        echo_time_ms=milliseconds("EchoTime"),
        inversion_time_ms=milliseconds("InversionTime"),
        flip_angle_deg=number(values.get("FlipAngle")),
        echo_train_length=number(values.get("EchoTrainLength")),
        b_value=None,
        agent=text("ContrastBolusIngredient", "ContrastBolusAgent") or _entities(names.stem).get("ce", ""),
        agent_volume_ml=None,
        description=text("SeriesDescription") or names.stem,
        protocol=text("ProtocolName") or names.stem,
        body_part=text("BodyPartExamined", "BodyPart"),
        slice_step_mm=None,
        frame_of_reference="",
        series_number=int(number(values.get("SeriesNumber")) or 0),
        acquisition_type=text("MRAcquisitionType"),
        echo_number=None if echo is None else int(echo),
    )


def identity_of(root: str, names: Names) -> Identity:
    """The patient of a file: numbered within its data set, with age and sex of ``participants.tsv``."""
    row = _participants(root).get(names.patient, {})
    age = row.get("age", "").strip()
    return Identity(
        patient_id=names.patient,
        issuer=str(_json(os.path.join(root, DESCRIPTION)).get("Name", "nifti")),
        accession="",
        people=(),
        numbers=(),
        places=(),
        dates=(),
        study_date="",
        birth_date="",
        age=f"{int(float(age)):03d}Y" if re.fullmatch(r"\d{1,3}(\.\d+)?", age) else "",
        sex=row.get("sex", "").strip()[:1].upper(),
    )


def _entities(stem: str) -> dict[str, str]:
    """``sub-01_ses-2_T1w`` as key and value, the suffix under ''."""
    *pairs, suffix = stem.split("_")
    found = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
    return {**found, "": suffix}


def _sidecar(path: str, root: str) -> dict[str, Any]:
    """The values that apply to a file: its own, and those of the folders above that name no other (inheritance)."""
    stem = os.path.basename(path).removesuffix(".gz").removesuffix(".nii")
    wanted = _entities(stem)
    here, values = Path(root), {}
    for part in ("", *Path(os.path.relpath(os.path.dirname(path), root)).parts):
        here = here / part
        for candidate in sorted(here.glob(f"*{wanted['']}.json"), key=lambda file: len(file.name)):
            entities = _entities(candidate.stem)
            if all(wanted.get(key) == value for key, value in entities.items()):
                values.update(_json(str(candidate)))
    return values


@lru_cache(maxsize=64)
def _json(path: str) -> dict[str, Any]:
    try:
        if os.path.getsize(path) > _MAX_SIDECAR:
            return {}
        found = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


@lru_cache(maxsize=4)
def _participants(root: str) -> dict[str, dict[str, str]]:
    try:
        with open(os.path.join(root, "participants.tsv"), encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except (OSError, ValueError, csv.Error):
        return {}
    plain = ({key: value for key, value in row.items() if key and value} for row in rows)
    return {row["participant_id"]: row for row in plain if "participant_id" in row}
