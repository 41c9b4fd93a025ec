"""From configuration to model."""

from __future__ import annotations

from fm.config.data import DataConfig
from fm.config.errors import ConfigError
from fm.config.model import ModelConfig, VitTextConfig
from fm.models.config import FmConfig
from fm.models.model import FmModel


def build_model(
    model: ModelConfig,
    data: DataConfig,
    vocab_size: int,
    *,
    initial_temperature: float = 0.07,
    initial_bias: float = 0.0,
) -> FmModel:
    """A freshly initialised model; seed torch before the call.

    Args:
        model: architecture.
        data: its spacings and tissue threshold become part of the model's own configuration: an export is complete.
        vocab_size: entries of the tokenizer.
        initial_temperature: start of the learnt contrastive temperature.
        initial_bias: start of the learnt contrastive bias.

    Raises:
        ConfigError: a model kind that this version does not build.
    """
    if not isinstance(model, VitTextConfig):
        raise ConfigError(f"model.kind={model.kind!r}: this version builds 'vit_text'")
    return FmModel(
        FmConfig(
            patch_voxels=list(model.patch_voxels),
            patch_stem=model.patch_stem.value,
            cell_voxels=list(model.cell_voxels),
            cell_channels=model.cell_channels,
            dim=model.dim,
            depth=model.depth,
            heads=model.heads,
            mlp_ratio=model.mlp_ratio,
            registers=model.registers,
            qk_norm=model.qk_norm,
            layer_scale=model.layer_scale,
            rope_min_period_mm=model.rope_min_period_mm,
            rope_max_period_mm=model.rope_max_period_mm,
            absolute_position=model.absolute_position,
            pool_heads=model.pool_heads,
            embed_dim=model.embed_dim,
            vocab_size=vocab_size,
            text_dim=model.text_dim,
            text_depth=model.text_depth,
            text_heads=model.text_heads,
            text_max_tokens=model.text_max_tokens,
            text_window=model.text_window,
            initial_temperature=initial_temperature,
            initial_bias=initial_bias,
            spacing_mm=data.spacing_mm,
            slice_spacing_mm=data.slice_spacing_mm,
            min_tissue=data.min_tissue,
            max_series=data.max_series,
        )
    )
