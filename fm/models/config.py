"""The configuration that travels with exported weights: architecture and preprocessing, so an export is complete."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig


class FmConfig(PreTrainedConfig):
    """Architecture of :class:`fm.models.FmModel` and the lattice its input is resampled to.

    The fields mean what the fields of the same name in :class:`fm.config.model.VitTextConfig` and
    :class:`fm.config.data.DataConfig` mean.
    """

    model_type = "fm3d"

    patch_voxels: list[int] | tuple[int, ...] = (4, 16, 16)
    patch_stem: str = "linear"
    cell_voxels: list[int] | tuple[int, ...] = (2, 4, 4)
    cell_channels: int = 32
    dim: int = 384
    depth: int = 12
    heads: int = 6
    mlp: str = "gelu"
    mlp_ratio: float = 4.0
    registers: int = 4
    qk_norm: bool = True
    layer_scale: float = 1e-5
    drop_path: float = 0.0
    rope_min_period_mm: float = 16.0
    rope_max_period_mm: float = 800.0
    absolute_position: bool = True
    study_encoder: str = "gated_pool"
    study_depth: int = 2
    pool_heads: int = 4
    embed_dim: int = 512
    vocab_size: int = 8192
    text_dim: int = 512
    text_depth: int = 6
    text_heads: int = 8
    text_max_tokens: int = 256
    text_window: int = 1
    text_model: dict[str, Any] | None = None
    """Configuration of a transformers encoder in place of the BERT; None for the BERT of the sizes above."""
    text_training: str = "full"
    lora_rank: int = 8
    initial_temperature: float = 0.07
    initial_bias: float = 0.0
    spacing_mm: float = 1.0
    slice_spacing_mm: float = 4.0
    min_tissue: float = 0.05
    max_series: int = 4
    initializer_range: float = 0.02
