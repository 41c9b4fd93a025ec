"""Model configuration: the shape of the 3D image encoder and of the text encoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fm.config.errors import ConfigError


class PatchStem(StrEnum):
    """How the voxels of a patch become a token; named as YAML writes them (OmegaConf looks enums up by name)."""

    linear = "linear"
    conv = "conv"
    """Non-overlapping small cells first, shared weights, then the patch: some translation tolerance for little data."""


class MlpKind(StrEnum):
    """The MLP of a block."""

    gelu = "gelu"
    swiglu = "swiglu"
    """Gated, two thirds as wide: DINOv2's largest models."""


class StudyEncoder(StrEnum):
    """How the tokens of a study's series become one study embedding."""

    gated_pool = "gated_pool"
    """Gated attention pooling over all tokens of all series at once."""
    attention = "attention"
    """Each series is pooled apart; a small transformer then reads the series, told contrast, plane and spacing."""


class TextTraining(StrEnum):
    """What of the text encoder is trained."""

    full = "full"
    lora = "lora"
    """Low-rank additions to the linear maps of a frozen encoder (arXiv 2106.09685)."""
    frozen = "frozen"


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Base of the polymorphic group `model`; `kind` picks the subclass."""

    kind: str = "???"


@dataclass(kw_only=True, slots=True)
class VitTextConfig(ModelConfig):
    """A packed 3D ViT with gated study pooling, beside a BERT-like text encoder."""

    kind: str = "vit_text"
    patch_voxels: list[int] = field(default_factory=lambda: [4, 16, 16])
    """Patch size (D, H, W) in voxels of the view grid."""
    patch_stem: PatchStem = PatchStem.linear
    cell_voxels: list[int] = field(default_factory=lambda: [2, 4, 4])
    """Cell size (D, H, W) of the conv stem; must divide the patch."""
    cell_channels: int = 32
    dim: int = 384
    depth: int = 12
    heads: int = 6
    mlp: MlpKind = MlpKind.gelu
    mlp_ratio: float = 4.0
    registers: int = 4
    qk_norm: bool = True
    layer_scale: float = 1e-5
    """Initial value of LayerScale; 0 leaves LayerScale out."""
    drop_path: float = 0.0
    """Stochastic depth: share of the sequences that each branch of each block leaves out, uncomputed, in training."""
    checkpoint_blocks: bool = False
    """Compute each block again in the backward pass: memory of one block instead of all, for a third more time."""
    compile_blocks: bool = False
    """torch.compile for each block; on a CPU it needs a C++ compiler."""
    init_from: str = ""
    """Local safetensors file, or folder with some, whose image encoder training starts from: an export of this
    platform, or a ViT as DINOv2, DINOv3, 3DINO, MONAI or transformers name it; other patch sizes and 2D are resampled.
    They know no qk_norm: without it the start is their function. Empty: random weights."""
    rope_min_period_mm: float = 16.0
    rope_max_period_mm: float = 800.0
    absolute_position: bool = True
    """Add a Fourier embedding of the position in mm to each token, beside the rotary one."""
    study_encoder: StudyEncoder = StudyEncoder.gated_pool
    study_depth: int = 2
    """Blocks of the attention study encoder."""
    pool_heads: int = 4
    """Attention heads of the gated pooling over a study's or a series' tokens."""
    embed_dim: int = 512
    """E: size of the shared image–text space."""
    text_dim: int = 512
    text_depth: int = 6
    text_heads: int = 8
    text_max_tokens: int = 256
    text_window: int = 1
    """Neighbouring tokens that are read together before the first layer, an odd number: with 3, "left maxillary" and
    "no lesion" are there from the first step, which attention would have to learn. 1 leaves it out."""
    text_from: str = ""
    """Local folder of a transformers encoder (config, safetensors, tokenizer) in place of the BERT that the keys above
    describe; of those only `text_max_tokens` then counts. Empty: that BERT, from random weights."""
    text_training: TextTraining = TextTraining.full
    lora_rank: int = 8

    def __post_init__(self) -> None:
        """Refuse shapes that do not fit together."""
        self.patch_stem = PatchStem(self.patch_stem)
        self.mlp = MlpKind(self.mlp)
        self.study_encoder = StudyEncoder(self.study_encoder)
        self.text_training = TextTraining(self.text_training)
        for name, sizes in (("patch_voxels", self.patch_voxels), ("cell_voxels", self.cell_voxels)):
            if len(sizes) != 3 or min(sizes) < 1:
                raise ConfigError(f"model.{name}={list(sizes)}: give three whole numbers ≥ 1, (D, H, W)")
        if self.patch_stem is PatchStem.conv and any(
            p % c for p, c in zip(self.patch_voxels, self.cell_voxels, strict=True)
        ):
            raise ConfigError(
                f"model.cell_voxels={list(self.cell_voxels)}: each must divide patch_voxels={list(self.patch_voxels)}"
            )
        for name, dim, heads in (("dim", self.dim, self.heads), ("text_dim", self.text_dim, self.text_heads)):
            if dim % heads:
                raise ConfigError(f"model.{name}={dim}: must be a multiple of its {heads} heads")
        if self.dim // self.heads < 6:
            raise ConfigError(
                f"model.heads={self.heads}: heads of {self.dim // self.heads} dims hold no 3 axes; use ≥ 6"
            )
        if self.text_window < 1 or self.text_window % 2 == 0:
            raise ConfigError(f"model.text_window={self.text_window}: must be an odd number ≥ 1")
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"model.drop_path={self.drop_path}: must be at least 0 and below 1")
        if self.study_depth < 1 or self.lora_rank < 1:
            raise ConfigError("model.study_depth and model.lora_rank must be ≥ 1")
        if self.text_from and self.text_window > 1:
            raise ConfigError(f"model.text_window={self.text_window}: belongs to the BERT from sizes, not to text_from")
        if self.text_training is not TextTraining.full and not self.text_from:
            raise ConfigError(
                f"model.text_training={self.text_training.value} without model.text_from: random weights would stay "
                "random; name the folder of a text encoder, or use text_training=full"
            )
        if not 0 < self.rope_min_period_mm < self.rope_max_period_mm:
            raise ConfigError("model.rope_min_period_mm: must be positive and below rope_max_period_mm")
