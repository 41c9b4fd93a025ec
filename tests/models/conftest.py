from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from fm.batch import PackedTokens
from fm.models import FmConfig, FmModel

PATCH = (2, 4, 4)


@pytest.fixture
def make_pack() -> Callable[..., PackedTokens]:
    """Random packs of given lengths; one series per entry of `studies`."""

    def make(lengths: Sequence[int], studies: Sequence[int], seed: int = 0, patch_size: int = 32) -> PackedTokens:
        g = torch.Generator().manual_seed(seed)
        series, tokens = len(lengths), sum(lengths)
        return PackedTokens(
            patches_TP=torch.randn(tokens, patch_size, generator=g),
            position_T3=80 * torch.randn(tokens, 3, generator=g),
            offsets_S1=torch.tensor([0, *lengths]).cumsum(0),
            contrast_S=torch.randint(0, 5, (series,), generator=g),
            plane_S=torch.randint(0, 3, (series,), generator=g),
            agent_S=torch.randint(0, 3, (series,), generator=g),
            step_S33=torch.diag_embed(1 + 4 * torch.rand(series, 3, generator=g)),
            study_S=torch.tensor(studies, dtype=torch.int64),
        )

    return make


@pytest.fixture
def tiny_config() -> FmConfig:
    return FmConfig(
        patch_voxels=list(PATCH),
        patch_stem="conv",
        cell_voxels=[1, 2, 2],
        cell_channels=4,
        dim=48,
        depth=2,
        heads=2,
        registers=2,
        layer_scale=0.5,
        pool_heads=4,
        embed_dim=16,
        vocab_size=60,
        text_dim=16,
        text_depth=1,
        text_heads=2,
        text_max_tokens=12,
        text_window=3,
        spacing_mm=2.0,
        slice_spacing_mm=4.0,
    )


@pytest.fixture
def tiny_model(tiny_config: FmConfig) -> FmModel:
    torch.manual_seed(0)
    model = FmModel(tiny_config)
    model.eval()
    return model
