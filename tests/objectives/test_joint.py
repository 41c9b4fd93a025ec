from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from fm.batch import StudyBatch
from fm.config.data import DataConfig
from fm.config.errors import ConfigError
from fm.config.model import VitTextConfig
from fm.config.objective import Centering, JointConfig, ObjectiveConfig, TextLoss
from fm.objectives import build_objective, build_student, make_teacher
from fm.objectives.koleo import koleo
from fm.objectives.self_distillation import cross_entropy, teacher_targets
from fm.objectives.student import StudentModule

MakeBatch = Callable[..., StudyBatch]


def _config(**changes: object) -> JointConfig:
    small = {"prototypes": 12, "head_hidden_dim": 16, "head_bottleneck_dim": 6}
    return JointConfig(**{**small, **changes})  # type: ignore[arg-type]


def _student(model: VitTextConfig, config: JointConfig, data: DataConfig) -> StudentModule:
    torch.manual_seed(3)
    return build_student(model, config, data, vocab_size=40)


def test_the_loss_is_the_weighted_sum_of_its_parts(
    tiny_model: VitTextConfig, data: DataConfig, make_batch: MakeBatch
) -> None:
    config = _config(self_distillation_weight=0.7, image_text_weight=0.4, koleo_weight=0.2)
    student = _student(tiny_model, config, data)
    teacher, batch = make_teacher(student), make_batch(3, [0, 0, 1, 2], [True] * 3)
    loss, report = build_objective(config)(student, teacher, batch)
    want = 0.7 * report["self_distillation"] + 0.4 * report["image_text"] + 0.2 * report["koleo"]
    torch.testing.assert_close(loss.detach(), want)
    assert all(value.ndim == 0 and not value.requires_grad for value in report.values())
    assert not any(p.requires_grad for p in teacher.parameters())


def test_self_distillation_pairs_every_global_with_every_other_view(
    tiny_model: VitTextConfig, data: DataConfig, make_batch: MakeBatch
) -> None:
    config = _config(image_text_weight=0.0, koleo_weight=0.0)
    student = _student(tiny_model, config, data)
    teacher, batch = make_teacher(student), make_batch(2, [0, 1, 1], [True] * 2)
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(0.02 * torch.randn_like(p))
    cosine = {name: student.head(student.fm.image(view).class_SD) for name, view in batch.views.items()}
    own = {name: teacher.head(teacher.fm.image(batch.views[name]).class_SD) for name in ("global_a", "global_b")}
    losses = []
    for target, predictor in (("a", "global_b"), ("a", "local_a"), ("b", "global_a"), ("b", "local_a")):
        q = teacher_targets(own[f"global_{target}"], config.centering, config.teacher_temperature, 3, lambda x: x)
        losses.append(cross_entropy(q, cosine[predictor], config.student_temperature).mean())
    loss, _ = build_objective(config)(student, teacher, batch)
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)


def test_koleo_spreads_each_student_view(tiny_model: VitTextConfig, data: DataConfig, make_batch: MakeBatch) -> None:
    config = _config(student_sees_globals=False, koleo_weight=1.0)
    student = _student(tiny_model, config, data)
    batch = make_batch(2, [0, 1, 1], [True] * 2)
    _, report = build_objective(config)(student, make_teacher(student), batch)
    want = koleo(student.fm.image(batch.views["local_a"]).class_SD)
    torch.testing.assert_close(report["koleo"], want.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("centering", list(Centering))
@pytest.mark.parametrize("image_text", list(TextLoss))
def test_a_few_steps_lower_the_loss_and_move_every_parameter(
    centering: Centering, image_text: TextLoss, tiny_model: VitTextConfig, data: DataConfig, make_batch: MakeBatch
) -> None:
    config = _config(centering=centering, image_text=image_text)
    student = _student(tiny_model, config, data)
    before = copy.deepcopy(student.state_dict())
    teacher, objective = make_teacher(student), build_objective(config)
    batch = make_batch(4, [0, 1, 1, 2, 3], [True] * 4)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss, _ = objective(student, teacher, batch)
        optimizer.zero_grad()
        loss.backward()
        without = [n for n, p in student.named_parameters() if p.grad is None]
        # One plane and one agent occur in this batch, but even absent rows of a table get a zero gradient.
        assert not without
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2
    still = [n for n, p in student.named_parameters() if torch.equal(p, before[n])]
    assert still in ([], ["fm.scale.bias"] if image_text is TextLoss.clip else [])


def test_phrases_are_a_mean_over_phrases_and_usable_studies(
    tiny_model: VitTextConfig, data: DataConfig, make_batch: MakeBatch
) -> None:
    """In loops; study 1 has no report, study 3 no series."""
    config = _config(self_distillation_weight=0.0, image_text_weight=0.0, koleo_weight=0.0, phrase_weight=1.5)
    torch.manual_seed(3)
    student = build_student(tiny_model, config, data, 40, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    assert student.phrases is not None
    torch.testing.assert_close(student.phrases.linear.bias.sigmoid(), torch.arange(1, 8) / 10)
    batch = make_batch(4, [0, 1, 2], [True, False, True, True])
    loss, report = build_objective(config)(student, make_teacher(student), batch)
    view = batch.views["global_a"]
    logits = student.phrases(student.fm.encode_image(view, 4).study_BD)
    terms = []
    for study in (0, 2):
        for phrase in range(7):
            p = logits[study, phrase].sigmoid()
            terms.append(-(p if batch.text.phrases_BK[study, phrase] else 1 - p).log())
    torch.testing.assert_close(report["phrases"], torch.stack(terms).mean().detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss, 1.5 * torch.stack(terms).mean(), rtol=1e-5, atol=1e-6)


def test_studies_without_a_report_and_holes_leave_image_text_alone(
    tiny_model: VitTextConfig, data: DataConfig, make_batch: MakeBatch
) -> None:
    """Study 1 has no report, study 3 no series: the loss is that of studies 0 and 2."""
    config = _config(self_distillation_weight=0.0, koleo_weight=0.0)
    student = _student(tiny_model, config, data)
    teacher, objective = make_teacher(student), build_objective(config)
    batch = make_batch(4, [0, 1, 2], [True, False, True, True])
    loss, report = objective(student, teacher, batch)
    changed = copy.deepcopy(batch)
    changed.text.ids_BL[1] = 7
    changed.text.ids_BL[3] = 9
    again, _ = objective(student, teacher, changed)
    torch.testing.assert_close(loss, again, rtol=1e-6, atol=1e-6)
    assert loss.item() > 0.1 and report["image_text_top1"].item() in (0.0, 0.5, 1.0)


def test_without_any_report_only_self_distillation_is_left(
    tiny_model: VitTextConfig, data: DataConfig, make_batch: MakeBatch
) -> None:
    config = _config(koleo_weight=0.0)
    student = _student(tiny_model, config, data)
    batch = make_batch(3, [0, 1, 2], [False] * 3)
    loss, report = build_objective(config)(student, make_teacher(student), batch)
    loss.backward()
    assert report["image_text"].item() == 0
    torch.testing.assert_close(loss.detach(), report["self_distillation"])
    grad = student.fm.text_projection.weight.grad
    assert grad is not None and torch.equal(grad, torch.zeros_like(grad))


def test_a_batch_of_holes_gives_a_finite_loss_with_gradients(
    tiny_model: VitTextConfig, data: DataConfig, make_batch: MakeBatch
) -> None:
    student = _student(tiny_model, _config(), data)
    loss, _ = build_objective(_config())(student, make_teacher(student), make_batch(2, [], [False] * 2))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


def test_the_teacher_is_a_float32_copy(tiny_model: VitTextConfig, data: DataConfig) -> None:
    student = _student(tiny_model, _config(), data).to(torch.bfloat16)
    teacher = make_teacher(student)
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    assert not teacher.training and student.training
    for (name, p), q in zip(student.named_parameters(), teacher.parameters(), strict=True):
        assert torch.equal(p.float(), q), name
    assert not list(teacher.head.buffers())


def test_head_initialisation_reaches_every_parameter(tiny_model: VitTextConfig, data: DataConfig) -> None:
    head = _student(tiny_model, _config(), data).head
    with torch.no_grad():
        for p in head.parameters():
            p.fill_(float("nan"))
    head.init_weights()
    assert all(p.isfinite().all() for p in head.parameters())
    cosine = head(torch.randn(5, 24))
    assert cosine.shape == (5, 12) and cosine.abs().max() <= 1 + 1e-5


def test_an_unknown_objective_is_refused(tiny_model: VitTextConfig, data: DataConfig) -> None:
    with pytest.raises(ConfigError, match="joint"):
        build_objective(ObjectiveConfig(kind="jigsaw"))
    for wrong in ({"koleo_weight": -1.0}, {"self_distillation_weight": 0.0, "image_text_weight": 0.0}):
        with pytest.raises(ConfigError, match="objective"):
            JointConfig(**wrong)


def test_a_bf16_student_beside_a_float32_teacher_stays_near_float32(
    tiny_model: VitTextConfig, data: DataConfig, make_batch: MakeBatch
) -> None:
    config = _config(koleo_weight=0.0)
    batch = make_batch(3, [0, 1, 1, 2], [True] * 3)
    student = _student(tiny_model, config, data)
    teacher, objective = make_teacher(student), build_objective(config)
    exact, _ = objective(student, teacher, batch)
    student.to(torch.bfloat16)
    rounded, _ = objective(student, teacher, batch)
    rounded.backward()
    assert rounded.dtype is torch.float32 and abs(rounded.item() - exact.item()) < 0.03 * exact.item()
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
