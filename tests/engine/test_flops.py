from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fm.batch import PackedTokens, TextBatch
from fm.config.data import DataConfig
from fm.config.masking import HiddenFromStudent, MaskedPatchesConfig, PredictorConfig
from fm.config.model import VitTextConfig
from fm.config.objective import JointConfig
from fm.engine.flops import FlopMeter, device_tflops, transformer_flops
from fm.objectives import build_student, make_teacher
from fm.objectives.student import Patches

MODEL = VitTextConfig(
    patch_voxels=[2, 8, 8], dim=96, depth=3, heads=4, embed_dim=32, text_dim=48, text_depth=2, text_heads=4
)


def views(lengths: list[int]) -> PackedTokens:
    tokens, series = sum(lengths), len(lengths)
    return PackedTokens(
        patches_TP=torch.randn(tokens, 2 * 8 * 8),
        position_T3=torch.randn(tokens, 3) * 40,
        offsets_S1=torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()]),
        contrast_S=torch.ones(series, dtype=torch.int64),
        plane_S=torch.zeros(series, dtype=torch.int64),
        agent_S=torch.zeros(series, dtype=torch.int64),
        step_S33=torch.eye(3).repeat(series, 1, 1),
        study_S=torch.arange(series),
    )


def test_the_formula_of_vit_b() -> None:
    """12 blocks of 24 n D² + 4 n² D, as DINO papers count them."""
    n, dim = 1024, 768
    assert transformer_flops(n, dim, 12, 4.0) == 12 * (24 * n * dim**2 + 4 * n**2 * dim)


def test_the_meter_agrees_with_torchs_own_counter_of_matrix_products() -> None:
    """Within 3 %: torch sees the projections of conditions and positions too, and counts what it executes."""
    torch.manual_seed(0)
    config = JointConfig(prototypes=64, head_hidden_dim=48, head_bottleneck_dim=16)
    student = build_student(MODEL, config, DataConfig(url="x"), 100)
    meter = FlopMeter(student, make_teacher(student))
    pack = views([40, 70, 110])
    text = TextBatch(
        ids_BL=torch.randint(5, 90, (3, 24)),
        mask_BL=torch.ones(3, 24, dtype=torch.bool),
        present_B=torch.ones(3, dtype=torch.bool),
        identity_B=torch.arange(3),
        phrases_BK=torch.zeros(3, 0),
    )
    # The counter does not know the CPU's fused attention; written out, it sees the products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        features = student.fm.image(pack)
        student.head(features.class_SD)
        student.fm.text(text)
    assert meter.take() == pytest.approx(3 * counter.get_total_flops(), rel=0.03)
    assert meter.take() == 0


def test_the_predictor_of_hidden_patches_and_a_head_of_their_own_are_counted() -> None:
    """What the encoder does not see it does not pay for; what answers for it is paid, within 3 % of torch's count."""
    torch.manual_seed(0)
    hidden = HiddenFromStudent.dropped
    patches = MaskedPatchesConfig(weight=1.0, student=hidden, predictor=PredictorConfig(dim=96, depth=2, heads=4))
    config = JointConfig(prototypes=64, head_hidden_dim=48, head_bottleneck_dim=16, masked_patches=patches)
    student = build_student(MODEL, config, DataConfig(url="x"), 100)
    meter = FlopMeter(student, make_teacher(student))
    masks = {"global_a": torch.arange(220) % 3 == 0}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        student({"global_a": views([40, 70, 110])}, 3, patches=Patches(masks=masks, hide=True))
    assert meter.take() == pytest.approx(3 * counter.get_total_flops(), rel=0.03)


def test_a_teacher_has_no_backward_pass_and_the_first_look_of_accumulation_is_not_counted() -> None:
    student = build_student(MODEL, JointConfig(prototypes=64), DataConfig(url="x"), 100)
    teacher = make_teacher(student)
    meter, pack = FlopMeter(student, teacher), views([50])
    student.fm.image(pack)
    trained = meter.take()
    with torch.no_grad():
        teacher.fm.image(pack)
        assert meter.take() == pytest.approx(trained / 3)
        student.fm.image(pack)
        assert meter.take() == 0


def test_the_peak_is_what_the_configuration_says_or_the_data_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_tflops(12.5) == 12.5
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_tflops(0.0) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, peak in (("NVIDIA H100 80GB HBM3", 989.0), ("NVIDIA H100 PCIe", 756.0), ("some card", None)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda own=name: own)
        assert device_tflops(0.0) == peak
