from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from fm.batch import PackedTokens, StudyBatch, TextBatch
from fm.config.data import DataConfig
from fm.config.model import VitTextConfig


@pytest.fixture
def tiny_model() -> VitTextConfig:
    return VitTextConfig(
        patch_voxels=[2, 4, 4],
        dim=24,
        depth=1,
        heads=2,
        registers=1,
        layer_scale=0.0,
        pool_heads=2,
        embed_dim=8,
        text_dim=8,
        text_depth=1,
        text_heads=2,
        text_max_tokens=8,
    )


@pytest.fixture
def data() -> DataConfig:
    return DataConfig()


def _pack(studies: Sequence[int], tokens: int, g: torch.Generator) -> PackedTokens:
    series = len(studies)
    return PackedTokens(
        patches_TP=torch.randn(series * tokens, 32, generator=g),
        position_T3=50 * torch.randn(series * tokens, 3, generator=g),
        offsets_S1=tokens * torch.arange(series + 1),
        contrast_S=torch.randint(0, 5, (series,), generator=g),
        plane_S=torch.zeros(series, dtype=torch.int64),
        agent_S=torch.zeros(series, dtype=torch.int64),
        step_S33=torch.eye(3).repeat(series, 1, 1),
        study_S=torch.tensor(list(studies), dtype=torch.int64),
    )


@pytest.fixture
def make_batch() -> Callable[..., StudyBatch]:
    """A batch of B studies; `studies` names the study of each series, so a missing number is a hole."""

    def make(size: int, studies: Sequence[int], present: Sequence[bool], seed: int = 0) -> StudyBatch:
        g = torch.Generator().manual_seed(seed)
        return StudyBatch(
            step=0,
            keys=[f"s{i}" for i in range(size)],
            weight_B=torch.tensor([float(i in studies) for i in range(size)]),
            patient_B=torch.arange(1, size + 1),
            views={name: _pack(studies, n, g) for name, n in (("global_a", 5), ("global_b", 5), ("local_a", 2))},
            text=TextBatch(
                ids_BL=torch.randint(5, 40, (size, 6), generator=g),
                mask_BL=torch.tensor([[p] * 6 for p in present]),
                present_B=torch.tensor(list(present)),
                identity_B=torch.arange(1, size + 1) * torch.tensor(list(present)),
                phrases_BK=torch.rand(size, 7, generator=g) < 0.4,
            ),
        )

    return make
