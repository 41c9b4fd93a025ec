"""All answers about one series together."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from data_prep.headers import Scan
from data_prep.sequences.answer import Answer
from data_prep.sequences.contrast import contrast_of
from data_prep.sequences.fields import (
    acquisition_of,
    agent_of,
    dixon_part_of,
    fat_suppression_of,
    plane_answer,
    region_answer,
    role_of,
)
from data_prep.sequences.voxels import contrast_by_voxels
from fm.data.sample import Acquisition, Agent, Contrast, DixonPart, Evidence, FatSuppression, Plane, Role


@dataclass(frozen=True, kw_only=True, slots=True)
class Recognition:
    """What a series is; every field by its own rules."""

    contrast: Answer[Contrast]
    agent: Answer[Agent]
    role: Answer[Role]
    plane: Answer[Plane] | None
    """None without an affine."""
    fat_suppression: Answer[FatSuppression]
    acquisition: Answer[Acquisition]
    dixon: Answer[DixonPart | None]
    region: Answer[str]

    def evidence(self) -> dict[str, Evidence]:
        """Confidence and rule by field, as the shards keep them."""
        answers = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {
            name: Evidence(confidence=answer.confidence, rule=answer.rule)
            for name, answer in answers.items()
            if answer is not None
        }


def recognise(
    scan: Scan,
    volumes: int = 1,
    b_value: float | None = None,
    affine: NDArray[np.float64] | None = None,
    values: NDArray[np.float32] | None = None,
    agent_on_every_series: bool = False,
) -> Recognition:
    """What a series is.

    Args:
        scan: the header.
        volumes: 3D volumes that the series holds (a run of echo-planar volumes is BOLD).
        b_value: diffusion weighting in s/mm² where the converter knows it and the header does not.
        affine: (4, 4) array axes (column, row, slice) to RAS+ mm; tells the plane.
        values: (column, row, slice) voxels; looked at only where neither physics nor words tell the contrast.
        agent_on_every_series: the study has several series and all carry an agent tag.
    """
    agent = agent_of(scan, agent_on_every_series)
    region = region_answer(scan)
    contrast = contrast_of(scan, volumes, scan.b_value if b_value is None else b_value, agent.value)
    if contrast.confidence == 0 and values is not None and affine is not None and region.value in ("head", "unknown"):
        contrast = contrast_by_voxels(values, affine) or contrast
    dixon = dixon_part_of(scan, contrast.value)
    return Recognition(
        contrast=contrast,
        agent=agent,
        role=role_of(scan, contrast.value),
        plane=None if affine is None else plane_answer(affine),
        fat_suppression=fat_suppression_of(scan, contrast.value, dixon.value),
        acquisition=acquisition_of(scan),
        dixon=dixon,
        region=region,
    )
