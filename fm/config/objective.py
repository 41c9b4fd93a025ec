"""Objective configuration: which losses train the encoder, and how they are weighed."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fm.config.errors import ConfigError
from fm.config.masking import HiddenPatchesConfig, MaskedPatchesConfig, WidePredictorConfig


class Centering(StrEnum):
    """How teacher targets are kept from collapsing onto few prototypes; both use the global batch and hold no state.

    Members are named as YAML writes them: OmegaConf looks enums up by name.
    """

    sinkhorn = "sinkhorn"
    """Sinkhorn–Knopp: every prototype gets an equal share of the batch."""
    softmax = "softmax"
    """Softmax after subtraction of the batch mean of the teacher's logits."""


class TextLoss(StrEnum):
    """The image–text loss."""

    clip = "clip"
    siglip = "siglip"


@dataclass(kw_only=True, slots=True)
class ObjectiveConfig:
    """Base of the polymorphic group `objective`; `kind` picks the subclass."""

    kind: str = "???"


@dataclass(kw_only=True, slots=True)
class JointConfig(ObjectiveConfig):
    """EMA self-distillation on class tokens beside image–text contrast."""

    kind: str = "joint"
    self_distillation_weight: float = 1.0
    image_text_weight: float = 1.0
    koleo_weight: float = 0.1
    phrase_weight: float = 0.0
    """Of predicting, from the study's pooled features, which common phrases its report holds; 0 leaves it out."""
    phrase_min_share: float = 0.08
    """A phrase (a token, or two in a row) is asked for when at least this share of the training reports holds it."""
    phrase_max_share: float = 0.6
    """A phrase that more of the reports hold is not asked for."""
    image_text: TextLoss = TextLoss.clip
    image_text_rows: int = 4096
    """Rows of the matrix of all images against all texts held at once; a global batch of more studies is contrasted in
    parts, with the same loss and memory in proportion to the batch, not to its square."""
    mask_same_patient: bool = True
    """Another study of the same patient is no negative."""
    initial_temperature: float = 0.07
    """Start of the learnt contrastive temperature; CLIP only, SigLIP starts at 1/10 with bias −10."""
    student_sees_globals: bool = True
    """The student encodes the global views too; else self-distillation is local → global only."""
    prototypes: int = 4096
    head_hidden_dim: int = 1024
    head_bottleneck_dim: int = 256
    centering: Centering = Centering.sinkhorn
    sinkhorn_iterations: int = 3
    student_temperature: float = 0.1
    teacher_temperature: float = 0.05
    masked_patches: MaskedPatchesConfig = field(default_factory=MaskedPatchesConfig)
    gram_weight: float = 0.0
    """Of keeping the similarities among a global view's patches as the teacher has them (DINOv3, arXiv 2508.10104)."""
    first_teacher_temperature: float = 0.04
    """Of step 0, where there is a warm-up: cold targets at first keep an untrained head from uniform ones."""
    teacher_temperature_warmup_steps: int = 0
    """Steps in which the teacher's temperature goes by a straight line to its value; 0: it has it from the start."""

    def __post_init__(self) -> None:
        """Refuse weights and temperatures outside their range."""
        self.image_text = TextLoss(self.image_text)
        self.centering = Centering(self.centering)
        for name, value in (
            ("self_distillation_weight", self.self_distillation_weight),
            ("image_text_weight", self.image_text_weight),
            ("koleo_weight", self.koleo_weight),
            ("phrase_weight", self.phrase_weight),
            ("gram_weight", self.gram_weight),
        ):
            if value < 0:
                raise ConfigError(f"objective.{name}={value}: must be ≥ 0")
        patches = self.masked_patches.weight
        if self.self_distillation_weight + self.image_text_weight + self.phrase_weight + patches == 0:
            raise ConfigError(
                "objective: self_distillation_weight, image_text_weight, phrase_weight and masked_patches.weight are "
                "all 0, nothing to learn"
            )
        if patches + self.gram_weight > 0 and not self.student_sees_globals:
            raise ConfigError(
                "objective: masked_patches.weight and gram_weight compare patches of the global views, which "
                "student_sees_globals=false keeps from the student; set it to true"
            )
        for name, value in (
            ("initial_temperature", self.initial_temperature),
            ("student_temperature", self.student_temperature),
            ("teacher_temperature", self.teacher_temperature),
            ("first_teacher_temperature", self.first_teacher_temperature),
        ):
            if value <= 0:
                raise ConfigError(f"objective.{name}={value}: must be positive")
        if not 0 <= self.phrase_min_share <= self.phrase_max_share <= 1:
            raise ConfigError(
                f"objective.phrase_min_share={self.phrase_min_share} and objective.phrase_max_share="
                f"{self.phrase_max_share}: shares between 0 and 1, the smaller first"
            )
        if self.image_text_rows < 1:
            raise ConfigError(f"objective.image_text_rows={self.image_text_rows}: must be at least 1")
        if self.teacher_temperature_warmup_steps < 0:
            raise ConfigError(
                f"objective.teacher_temperature_warmup_steps={self.teacher_temperature_warmup_steps}: must be ≥ 0"
            )
        if self.prototypes < 2 or self.sinkhorn_iterations < 1:
            raise ConfigError("objective: prototypes must be ≥ 2 and sinkhorn_iterations ≥ 1")


@dataclass(kw_only=True, slots=True)
class MaeConfig(ObjectiveConfig):
    """Masked autoencoding: the encoder sees some of the patches, a light decoder draws the voxels of the rest."""

    kind: str = "mae"
    normalise_target: bool = True
    """Each patch is drawn less its own mean and over its own standard deviation."""
    masks: HiddenPatchesConfig = field(default_factory=HiddenPatchesConfig)
    decoder: WidePredictorConfig = field(default_factory=WidePredictorConfig)
