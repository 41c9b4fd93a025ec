from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fm.batch import PackedTokens
from fm.models import FmConfig, FmModel
from fm.models.study import StudyTransformer

MakePack = Callable[..., PackedTokens]


@pytest.fixture
def config(tiny_config: FmConfig) -> FmConfig:
    tiny_config.study_encoder, tiny_config.study_depth = "attention", 2
    return tiny_config


@pytest.fixture
def model(config: FmConfig) -> FmModel:
    torch.manual_seed(0)
    model = FmModel(config)
    with torch.no_grad():
        for p in model.pool.parameters():
            p.normal_(std=0.2)
    return model.eval()


def _chosen(pack: PackedTokens, order: list[int]) -> PackedTokens:
    """Some of the series of a pack, in another order."""
    starts = pack.offsets_S1.tolist()
    rows = torch.cat([torch.arange(starts[s], starts[s + 1]) for s in order])
    lengths = torch.tensor([starts[s + 1] - starts[s] for s in order])
    names = ("contrast_S", "plane_S", "agent_S", "step_S33", "study_S")
    return replace(
        pack,
        patches_TP=pack.patches_TP[rows],
        position_T3=pack.position_T3[rows],
        offsets_S1=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        **{name: getattr(pack, name)[order] for name in names},
    )


def test_the_order_of_series_means_nothing_and_twelve_or_one_are_the_same_code(
    model: FmModel, make_pack: MakePack
) -> None:
    pack = make_pack([3, 8, 1, 5, 2, 4, 9, 3, 2, 6, 7, 2, 5], [0] * 12 + [2])
    reference = model(pack, 4)
    order = torch.randperm(13, generator=torch.Generator().manual_seed(1)).tolist()
    turned = model(_chosen(pack, order), 4)
    torch.testing.assert_close(turned.study_BD, reference.study_BD, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(turned.series_SD, reference.series_SD[order], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reference.study_BD[2], reference.series_SD[12], rtol=1e-5, atol=1e-5)
    assert torch.equal(reference.study_BD[[1, 3]], torch.zeros(2, 48))
    alone = model(_chosen(pack, list(range(12))), 1)
    torch.testing.assert_close(alone.study_BD[0], reference.study_BD[0], rtol=1e-5, atol=1e-5)


def test_a_study_is_more_than_its_series_and_reads_what_they_are(model: FmModel, make_pack: MakePack) -> None:
    pack, pool = make_pack([3, 8], [0, 0]), model.pool
    features = model.image(pack)
    stream, group = (features.stream_class_SD, features.stream_tokens_TD), pack.study_S

    def study(views: PackedTokens) -> torch.Tensor:
        out: torch.Tensor = pool(*stream, views, group, 1)
        return out

    both = study(pack)
    for change in (
        {"contrast_S": pack.contrast_S.flip(0) + 1},
        {"plane_S": (pack.plane_S + 1) % 3},
        {"agent_S": (pack.agent_S + 1) % 3},
        {"step_S33": pack.step_S33 * 1.5},
    ):
        assert (study(replace(pack, **change)) - both).abs().max() > 1e-3, change
    without = model(_chosen(pack, [0]), 1).study_BD
    assert (without - both).abs().max() > 1e-2


def test_every_weight_learns_and_a_batch_without_series_still_gives_gradients(
    config: FmConfig, make_pack: MakePack
) -> None:
    pool = StudyTransformer(config)
    for lengths, studies in (([3, 8], [0, 0]), ([], [])):
        pack = make_pack(lengths, studies)
        classes, tokens = torch.randn(len(lengths), 48), torch.randn(sum(lengths), 48)
        out = pool(classes, tokens, pack, pack.study_S, 2)
        assert out.shape == (2, 48)
        grads = torch.autograd.grad(out.square().sum(), list(pool.parameters()))
        assert all(bool(grad.any()) == bool(lengths) for grad in grads[-6:])


def test_it_is_exported_and_loaded(model: FmModel, make_pack: MakePack, tmp_path: object) -> None:
    model.save_pretrained(tmp_path)
    loaded, pack = FmModel.from_pretrained(tmp_path).eval(), make_pack([5, 8], [0, 1])
    assert isinstance(loaded.pool, StudyTransformer)
    assert torch.equal(loaded.embed_study(pack, 2), model.embed_study(pack, 2))


def test_initial_weights_leave_no_part_out(config: FmConfig) -> None:
    torch.manual_seed(0)
    model = FmModel(config)
    assert 0.01 < model.pool.token.tokens.std() < 0.04 and 0.01 < model.image.prefix.tokens.std() < 0.04
