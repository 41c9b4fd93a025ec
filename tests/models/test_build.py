from __future__ import annotations

import pytest
import torch

from fm.config.data import DataConfig
from fm.config.errors import ConfigError
from fm.config.model import MlpKind, ModelConfig, PatchStem, StudyEncoder, VitTextConfig
from fm.models import build_model
from fm.models.study import StudyTransformer
from fm.models.vit import SwiGlu


def test_every_architecture_key_reaches_the_model() -> None:
    model = VitTextConfig(
        patch_voxels=[2, 8, 4],
        patch_stem=PatchStem.conv,
        cell_voxels=[1, 4, 2],
        cell_channels=6,
        dim=36,
        depth=3,
        heads=3,
        mlp_ratio=2.0,
        registers=5,
        qk_norm=False,
        layer_scale=0.25,
        rope_min_period_mm=10.0,
        rope_max_period_mm=300.0,
        absolute_position=False,
        pool_heads=2,
        embed_dim=24,
        text_dim=40,
        text_depth=4,
        text_heads=5,
        text_max_tokens=33,
        text_window=5,
        mlp=MlpKind.swiglu,
        drop_path=0.2,
        checkpoint_blocks=True,
        study_encoder=StudyEncoder.attention,
        study_depth=3,
    )
    data = DataConfig(spacing_mm=1.5, slice_spacing_mm=3.0, min_tissue=0.2, max_series=7)
    torch.manual_seed(0)
    built = build_model(model, data, vocab_size=77, initial_temperature=0.2, initial_bias=-3.0)
    image = built.image
    assert image.stem.linear.weight.shape == (36, 2 * 6) and image.stem.cell_voxels == (1, 4, 2)
    assert len(image.blocks) == 3 and image.blocks[0].attention.heads == 3
    assert image.blocks[0].mlp.up.out_features == 2 * 48 and isinstance(image.blocks[0].mlp, SwiGlu)
    assert image.blocks[2].drop_path == 0.2 and image.checkpoint_blocks and not image.compiled
    assert image.prefix.tokens.shape == (6, 36) and image.absolute is None
    assert isinstance(image.blocks[0].attention.q_norm, torch.nn.Identity)
    assert image.blocks[0].scale1.scale.unique().tolist() == [0.25]
    assert isinstance(built.pool, StudyTransformer) and len(built.pool.blocks) == 3
    assert built.pool.summary.heads == 2 and built.image_projection.out_features == 24
    bert = built.text.bert.config
    assert (bert.vocab_size, bert.hidden_size, bert.num_hidden_layers) == (77, 40, 4)
    assert (bert.num_attention_heads, bert.max_position_embeddings) == (5, 33)
    assert built.text.phrase.window == 5
    scale, bias = built.contrast_scale()
    assert scale.item() == pytest.approx(5.0) and bias.item() == -3.0
    assert (built.config.rope_min_period_mm, built.config.rope_max_period_mm) == (10.0, 300.0)
    lattice = built.lattice
    assert (lattice.spacing_mm, lattice.slice_spacing_mm, lattice.min_tissue) == (1.5, 3.0, 0.2)
    assert lattice.patch_voxels == (2, 8, 4) and built.config.max_series == 7


def test_an_unknown_kind_and_impossible_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match="vit_text"):
        build_model(ModelConfig(kind="resnet"), DataConfig(), 10)
    for wrong in (
        {"patch_voxels": [4, 16]},
        {"patch_stem": PatchStem.conv, "cell_voxels": [3, 4, 4]},
        {"dim": 100, "heads": 3},
        {"dim": 20, "heads": 5},
        {"rope_min_period_mm": 900.0},
        {"text_window": 2},
        {"drop_path": 1.0},
        {"study_depth": 0},
    ):
        with pytest.raises(ConfigError, match=r"^model\."):
            VitTextConfig(**wrong)
