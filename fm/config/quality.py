"""Checks of image quality during preparation: the limit of each, and what happens to a series beyond it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum

from fm.config.errors import ConfigError


class Action(StrEnum):
    """What happens to a series beyond a limit; named as YAML writes them."""

    ignore = "ignore"
    """Measured, and nothing more."""
    flag = "flag"
    """Kept, and named in the index and on the page of pictures."""
    quarantine = "quarantine"
    """Left out, with the check's name as reason."""


@dataclass(kw_only=True, slots=True)
class LimitsConfig:
    """Limits beyond which a check of image quality finds a series conspicuous; docs/quality.md has what they find."""

    clipped: float = 0.01
    """More than this share of the body has the largest value."""
    low_contrast: float = 0.3
    """The 5th and 95th percentile of the body are nearer than this share of the 95th."""
    blank_slices: float = 0.0
    """More than this many acquired slices within the body hold one value."""
    low_snr: float = 6.0
    """The body's median is less than this many standard deviations of the noise."""
    ghosting: float = 0.02
    """Along one axis the air is brighter by more than this share of the body: motion, flow, echo-planar ghosts."""
    banding: float = 0.05
    """Every second slice is brighter or darker by more than this share."""
    slice_outlier: float = 0.5
    """One slice differs from its neighbours by more than this, as a natural logarithm."""
    slice_shift: float = 2.5
    """Every second slice lies more than this many mm beside its neighbours: motion between interleaved passes."""
    short_coverage: float = 100.0
    """A head has fewer mm of body than this along one axis."""
    cut_off: float = 0.6
    """At the vertex or an in-plane side of a head the picture ends with more than this share of the largest slice."""
    missing_slices: float = 0.0
    """More than this share of the slices is missing; prepare.gaps decides before this."""
    uneven_slices: float = 0.02
    """A slice lies further than this share of the spacing from the regular grid."""
    sheared: float = 1.0
    """The slice axis leans by more than this many degrees from the slices' normal."""
    coarse_voxels: float = 10.0
    """The largest spacing is more than this many mm."""

    def __post_init__(self) -> None:
        """Refuse limits below zero."""
        for check in fields(self):
            if not getattr(self, check.name) >= 0:
                raise ConfigError(f"prepare.limits.{check.name}={getattr(self, check.name)}: 0 or more is needed")
