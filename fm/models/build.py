"""From configuration to model."""

from __future__ import annotations

from fm.config.data import DataConfig
from fm.config.errors import ConfigError
from fm.config.model import ModelConfig, VitTextConfig
from fm.models.config import FmConfig
from fm.models.init import load_image_weights
from fm.models.model import FmModel
from fm.models.text import read_text_config


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
        UserError: weights to start from that are not there or do not fit; compilation without a compiler.
    """
    if not isinstance(model, VitTextConfig):
        raise ConfigError(f"model.kind={model.kind!r}: this version builds 'vit_text'")
    built = FmModel(_config(model, data, vocab_size, initial_temperature, initial_bias))
    if model.text_from:
        built.text.load(model.text_from)
    if model.init_from:
        load_image_weights(built, model.init_from)
    built.image.checkpoint_blocks = model.checkpoint_blocks
    if model.compile_blocks:
        built.image.compile_blocks()
    return built


def _config(
    model: VitTextConfig, data: DataConfig, vocab_size: int, initial_temperature: float, initial_bias: float
) -> FmConfig:
    """What an export needs to be read without the run's own configuration."""
    text_model = read_text_config(model.text_from, model.text_max_tokens, vocab_size) if model.text_from else None
    return FmConfig(
        patch_voxels=list(model.patch_voxels),
        patch_stem=model.patch_stem.value,
        cell_voxels=list(model.cell_voxels),
        cell_channels=model.cell_channels,
        dim=model.dim,
        depth=model.depth,
        heads=model.heads,
        mlp=model.mlp.value,
        mlp_ratio=model.mlp_ratio,
        registers=model.registers,
        qk_norm=model.qk_norm,
        layer_scale=model.layer_scale,
        drop_path=model.drop_path,
        rope_min_period_mm=model.rope_min_period_mm,
        rope_max_period_mm=model.rope_max_period_mm,
        absolute_position=model.absolute_position,
        study_encoder=model.study_encoder.value,
        study_depth=model.study_depth,
        pool_heads=model.pool_heads,
        embed_dim=model.embed_dim,
        vocab_size=vocab_size,
        text_dim=model.text_dim,
        text_depth=model.text_depth,
        text_heads=model.text_heads,
        text_max_tokens=model.text_max_tokens,
        text_window=model.text_window,
        text_model=text_model,
        text_training=model.text_training.value,
        lora_rank=model.lora_rank,
        initial_temperature=initial_temperature,
        initial_bias=initial_bias,
        spacing_mm=data.spacing_mm,
        slice_spacing_mm=data.slice_spacing_mm,
        min_tissue=data.min_tissue,
        max_series=data.max_series,
    )
