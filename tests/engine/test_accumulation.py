from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from fm.batch import PackedTokens, StudyBatch, TextBatch
from fm.config.data import DataConfig
from fm.config.masking import (
    HiddenFromStudent,
    MaskedPatchesConfig,
    MasksConfig,
    PredictorConfig,
    WidePredictorConfig,
)
from fm.config.model import VitTextConfig
from fm.config.objective import JointConfig, MaeConfig, ObjectiveConfig
from fm.engine.accumulation import Replay, join_batches
from fm.objectives import build_objective, build_student, local_gather, make_teacher

VOXELS = 2 * 4 * 4


def pack(generator: torch.Generator, studies: list[int], tokens: int) -> PackedTokens:
    total = tokens * len(studies)
    return PackedTokens(
        patches_TP=torch.randn(total, VOXELS, generator=generator),
        position_T3=torch.randn(total, 3, generator=generator) * 40,
        offsets_S1=torch.arange(0, total + 1, tokens),
        contrast_S=torch.ones(len(studies), dtype=torch.int64),
        plane_S=torch.zeros(len(studies), dtype=torch.int64),
        agent_S=torch.zeros(len(studies), dtype=torch.int64),
        step_S33=torch.eye(3).repeat(len(studies), 1, 1),
        study_S=torch.tensor(studies),
    )


def make_batch(number: int, series: list[int], words: int) -> StudyBatch:
    """Three studies; `series` names the study of each sequence, so a study may have two or none."""
    generator = torch.Generator().manual_seed(number)
    return StudyBatch(
        step=0,
        keys=[f"study{number}_{row}" for row in range(3)],
        weight_B=torch.tensor([float(row in series) for row in range(3)]),
        patient_B=torch.arange(1, 4) + 10 * number,
        views={"global_a": pack(generator, series, 6), "local_a": pack(generator, series, 4)},
        text=TextBatch(
            ids_BL=torch.randint(5, 30, (3, words), generator=generator),
            mask_BL=torch.ones(3, words, dtype=torch.bool),
            present_B=torch.tensor([True, True, number != 1]),
            identity_B=torch.arange(1, 4) + 100 * number,
            phrases_BK=torch.rand(3, 5, generator=generator) < 0.5,
        ),
    )


MICROS = [make_batch(0, [0, 0, 1, 2], 5), make_batch(1, [0, 2], 7), make_batch(2, [0, 1, 1, 2], 6)]


def test_joined_batches_keep_rows_and_sequences_apart() -> None:
    joined = join_batches(MICROS)
    assert joined.keys == [key for micro in MICROS for key in micro.keys]
    assert joined.views["global_a"].study_S.tolist() == [0, 0, 1, 2, 3, 5, 6, 7, 7, 8]
    assert joined.text.ids_BL.shape == (9, 7)
    assert joined.text.mask_BL.sum(1).tolist() == [5] * 3 + [7] * 3 + [6] * 3
    second = joined.views["local_a"].offsets_S1[4:6].tolist()
    assert torch.equal(joined.views["local_a"].patches_TP[slice(*second)], MICROS[1].views["local_a"].patches_TP[:4])


SIZES = {"prototypes": 16, "head_hidden_dim": 24, "head_bottleneck_dim": 8}
MASKS = MasksConfig(crop_share=0.8, share_min=0.3, share_max=0.7)
SMALL = PredictorConfig(dim=16, depth=1, heads=2)


def masked(way: HiddenFromStudent) -> JointConfig:
    patches = MaskedPatchesConfig(weight=1.0, student=way, masks=MASKS, predictor=SMALL)
    return JointConfig(phrase_weight=0.5, masked_patches=patches, gram_weight=1.0, **SIZES)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "config",
    [
        JointConfig(phrase_weight=0.5, **SIZES),  # type: ignore[arg-type]
        masked(HiddenFromStudent.mask_token),
        masked(HiddenFromStudent.dropped),
        MaeConfig(decoder=WidePredictorConfig(dim=16, depth=1, heads=2)),
    ],
    ids=["plain", "mask_token", "dropped", "mae"],
)
def test_cached_gradients_equal_those_of_the_large_batch(config: ObjectiveConfig) -> None:
    torch.manual_seed(0)
    shape = VitTextConfig(
        patch_voxels=[2, 4, 4], dim=24, depth=2, heads=2, text_dim=16, text_depth=1, text_heads=2, embed_dim=16
    )
    student = build_student(shape, config, DataConfig(), 40, [0.4] * 5)
    teacher, objective = make_teacher(student), build_objective(config)
    whole = copy.deepcopy(student)
    expected, _ = objective(whole, teacher, join_batches(MICROS), local_gather)
    expected.backward()

    seeds: list[int] = []
    replay = Replay(student, MICROS, seeds.append, keep=True)
    target = Replay(teacher, MICROS, seeds.append, keep=False)
    loss, _ = objective(replay, target, join_batches(MICROS), local_gather)  # type: ignore[arg-type]
    assert all(p.grad is None for p in student.parameters())
    loss.backward()
    for number in range(len(MICROS)):
        replay.surrogate(number).backward()
    torch.testing.assert_close(loss, expected)
    wanted = dict(whole.named_parameters())
    for name, parameter in student.named_parameters():
        assert (parameter.grad is None) == (wanted[name].grad is None), name
        if parameter.grad is not None:
            expected_grad = wanted[name].grad
            assert expected_grad is not None
            difference = float((parameter.grad - expected_grad).norm())
            assert difference <= 1e-4 * float(expected_grad.norm()) + 1e-7, f"{name}: {difference:.1e}"
    passes = 2 if isinstance(config, MaeConfig) else 3  # masked autoencoding asks no teacher
    assert sorted(seeds) == sorted([0, 1, 2] * passes), "each pass over a micro-batch has its random state"


def test_an_objective_that_asks_twice_is_told() -> None:
    def forward(*_: object) -> None:
        raise AssertionError("not reached")

    replay = Replay(forward, [], lambda _: None, keep=True)  # type: ignore[arg-type]
    replay._asked = (["global_a"], None, None)
    with pytest.raises(RuntimeError, match="once"):
        replay({}, 3)


def test_a_single_micro_batch_is_its_own_joined_batch() -> None:
    assert join_batches(MICROS[:1]) is MICROS[0]
    assert replace(MICROS[0], step=4).step == 4
