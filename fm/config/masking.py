"""Masked patches: how masks are drawn, and self-distillation on what they hide."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fm.config.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class MasksConfig:
    """Which patches of a crop are hidden: boxes of random edges in mm round random patches; DINOv2's shares."""

    crop_share: float = 0.5
    """Share of the crops that are masked at all, drawn crop by crop."""
    share_min: float = 0.1
    """Smallest share of a masked crop's patches that is hidden."""
    share_max: float = 0.5
    """Largest share of a masked crop's patches that is hidden."""
    block_mm_min: float = 24.0
    """Shortest edge of a box."""
    block_mm_max: float = 96.0
    """Longest edge of a box; 0 hides single patches at random places, as masked autoencoding does."""

    def __post_init__(self) -> None:
        """Refuse shares and edges outside their range."""
        where = "objective masks"
        if not 0 < self.crop_share <= 1:
            raise ConfigError(f"{where}: crop_share={self.crop_share} must be above 0 and at most 1")
        if not 0 < self.share_min <= self.share_max < 1:
            raise ConfigError(
                f"{where}: share_min={self.share_min} and share_max={self.share_max} must lie between 0 and 1, "
                "the smaller first"
            )
        if not 0 <= self.block_mm_min <= self.block_mm_max:
            raise ConfigError(
                f"{where}: block_mm_min={self.block_mm_min} and block_mm_max={self.block_mm_max} must be ≥ 0, the "
                "smaller first"
            )
        if self.block_mm_min == 0 < self.block_mm_max:
            raise ConfigError(f"{where}: block_mm_min=0 with block_mm_max={self.block_mm_max}: give a shortest edge")


@dataclass(kw_only=True, slots=True)
class HiddenPatchesConfig(MasksConfig):
    """The same for masked autoencoding: three quarters of every crop, at random places (MAE, arXiv 2111.06377)."""

    crop_share: float = 1.0
    share_min: float = 0.75
    share_max: float = 0.75
    block_mm_min: float = 0.0
    block_mm_max: float = 0.0


@dataclass(kw_only=True, slots=True)
class PredictorConfig:
    """What predicts hidden patches from visible ones: blocks of cross-attention, queries placed in mm.

    Hidden patches read the visible ones and not each other (CAPI, arXiv 2502.08769; CrossMAE, arXiv 2401.14391).
    """

    dim: int = 384
    depth: int = 4
    heads: int = 6

    def __post_init__(self) -> None:
        """Refuse shapes that do not fit together."""
        if min(self.dim, self.depth, self.heads) < 1 or self.dim % self.heads or self.dim // self.heads < 6:
            raise ConfigError(
                f"objective predictor: dim={self.dim}, depth={self.depth}, heads={self.heads}: all ≥ 1, and dim a "
                "multiple of heads with at least 6 channels for each"
            )


@dataclass(kw_only=True, slots=True)
class WidePredictorConfig(PredictorConfig):
    """The same for masked autoencoding, in the sizes of MAE's decoder."""

    dim: int = 512
    depth: int = 8
    heads: int = 16


class HiddenFromStudent(StrEnum):
    """What the student's encoder sees in the place of a masked patch; named as YAML writes them."""

    mask_token = "mask_token"
    """A learnt token, with the patch's position (iBOT, DINOv2)."""
    dropped = "dropped"
    """Nothing: the tokens are left out, uncomputed, and a light predictor answers for them (CAPI)."""


@dataclass(kw_only=True, slots=True)
class MaskedPatchesConfig:
    """Self-distillation on masked patches of the global views (iBOT, arXiv 2111.07832; DINOv2, arXiv 2304.07193)."""

    weight: float = 0.0
    """0 leaves masks out altogether."""
    student: HiddenFromStudent = HiddenFromStudent.mask_token
    untied_head: bool = True
    """Patches have a head of their own; else they share that of the class tokens."""
    masks: MasksConfig = field(default_factory=MasksConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)

    def __post_init__(self) -> None:
        """Refuse a negative weight."""
        self.student = HiddenFromStudent(self.student)
        if self.weight < 0:
            raise ConfigError(f"objective.masked_patches.weight={self.weight}: must be ≥ 0")
