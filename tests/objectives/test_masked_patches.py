from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fm.batch import StudyBatch
from fm.config.data import DataConfig
from fm.config.errors import ConfigError
from fm.config.masking import HiddenFromStudent, MaskedPatchesConfig, MasksConfig, PredictorConfig
from fm.config.model import VitTextConfig
from fm.config.objective import Centering, JointConfig
from fm.objectives import build_objective, build_student, make_teacher
from fm.objectives.gram import gram_distances
from fm.objectives.masked_patches import masked_patch_losses
from fm.objectives.masks import draw_masks
from fm.objectives.predictor import Places
from fm.objectives.self_distillation import teacher_targets
from fm.objectives.student import JointStudent, Patches

MakeBatch = Callable[..., StudyBatch]
SIZES = {"prototypes": 12, "head_hidden_dim": 16, "head_bottleneck_dim": 6}


def masked(student: HiddenFromStudent = HiddenFromStudent.mask_token, **changes: object) -> MaskedPatchesConfig:
    masks = MasksConfig(crop_share=0.7, share_min=0.3, share_max=0.7)
    predictor = PredictorConfig(dim=16, depth=1, heads=2)
    return MaskedPatchesConfig(weight=1.0, student=student, masks=masks, predictor=predictor, **changes)  # type: ignore[arg-type]


def config(patches: MaskedPatchesConfig, **changes: object) -> JointConfig:
    only = {"self_distillation_weight": 0.0, "koleo_weight": 0.0, "image_text_weight": 0.0}
    return JointConfig(**{**SIZES, **only, "masked_patches": patches, **changes})  # type: ignore[arg-type]


def build(model: VitTextConfig, objective: JointConfig, data: DataConfig) -> tuple[JointStudent, JointStudent]:
    """A student and a teacher that is not quite the same."""
    torch.manual_seed(3)
    student = build_student(model, objective, data, 40)
    teacher = make_teacher(student)
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(0.02 * torch.randn_like(p))
    assert isinstance(student, JointStudent) and isinstance(teacher, JointStudent)
    return student, teacher


def test_the_loss_of_crops_equals_its_loop_form_in_value_and_gradient() -> None:
    g = torch.Generator().manual_seed(0)
    counts, temperature = [3, 0, 1, 4], 0.1
    target = torch.rand(8, 5, generator=g).softmax(1)
    cosine = (2 * torch.rand(8, 5, generator=g) - 1).requires_grad_()
    loss = masked_patch_losses(target, cosine, torch.tensor(counts), temperature)
    loss.mean().backward()
    exact = cosine.detach().double().requires_grad_()
    crops, first = [], 0
    for count in counts:
        terms = [exact.new_zeros(())]
        for m in range(first, first + count):
            denominator = sum((exact[m, k] / temperature).exp() for k in range(5))
            for k in range(5):
                terms.append(-target[m, k].double() * ((exact[m, k] / temperature).exp() / denominator).log())
        crops.append(sum(terms, exact.new_zeros(())) / max(count, 1))
        first += count
    want = torch.stack(crops)
    want.mean().backward()
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-6)
    assert cosine.grad is not None and exact.grad is not None
    torch.testing.assert_close(cosine.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)


def test_gram_distances_equal_their_loop_form_in_value_and_gradient() -> None:
    g = torch.Generator().manual_seed(1)
    lengths = [4, 1, 0, 3]
    student, teacher = torch.randn(8, 6, generator=g).requires_grad_(), torch.randn(8, 6, generator=g)
    loss = gram_distances(student, teacher, lengths)
    loss.sum().backward()
    exact, other = student.detach().double().requires_grad_(), teacher.double()
    each, first = [], 0
    for n in lengths:
        total = exact.new_zeros(())
        for i in range(first, first + n):
            for j in range(first, first + n):
                a = (exact[i] @ exact[j]) / (exact[i].norm() * exact[j].norm())
                b = (other[i] @ other[j]) / (other[i].norm() * other[j].norm())
                total = total + (a - b) ** 2
        each.append(total / max(n * n, 1))
        first += n
    torch.stack(each).sum().backward()
    torch.testing.assert_close(loss.double(), torch.stack(each), rtol=1e-5, atol=1e-6)
    assert student.grad is not None and exact.grad is not None
    torch.testing.assert_close(student.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("untied", [True, False])
@pytest.mark.parametrize("centering", list(Centering))
def test_masked_patches_in_loops_with_the_mask_token(
    untied: bool, centering: Centering, tiny_model: VitTextConfig, data: DataConfig, make_batch: MakeBatch
) -> None:
    """Crop by crop: the student's stem output replaced by hand, targets over all masked patches of both views."""
    objective = config(masked(untied_head=untied), centering=centering)
    student, teacher = build(tiny_model, objective, data)
    batch = make_batch(3, [0, 0, 1, 2], [True] * 3)
    masks = draw_masks(batch, ["global_a", "global_b"], objective.masked_patches.masks)
    assert 0 < sum(int(m.sum()) for m in masks.values()) < 40
    assert student.mask_token is not None
    rows, targets, lengths = [], [], []
    for name, mask in masks.items():
        view, token = batch.views[name], student.mask_token.token.tokens[0]

        def put(x_TD: Tensor, mask: Tensor = mask, token: Tensor = token) -> Tensor:
            return torch.stack([token if hidden else x for x, hidden in zip(x_TD, mask, strict=True)])

        head = student.patch_head if untied else student.head
        other = teacher.patch_head if untied else teacher.head
        assert head is not None and other is not None
        rows.append(head(student.fm.image(view, put).tokens_TD[mask]))
        targets.append(other(teacher.fm.image(view).tokens_TD[mask]))
        lengths += [int(m.sum()) for m in mask.split(view.lengths)]
    q = teacher_targets(torch.cat(targets), centering, objective.teacher_temperature, 3, lambda x: x)
    log_p = (torch.cat(rows) / objective.student_temperature).log_softmax(1)
    per_crop = [(-(a * b).sum(1)).mean() for a, b in zip(q.split(lengths), log_p.split(lengths), strict=True) if len(a)]
    loss, report = build_objective(objective)(student, teacher, batch)
    torch.testing.assert_close(loss, torch.stack(per_crop).sum() / len(lengths), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(report["masked_patches"], loss.detach())


@pytest.mark.parametrize("way", list(HiddenFromStudent))
def test_a_hidden_patch_cannot_be_seen(
    way: HiddenFromStudent, tiny_model: VitTextConfig, data: DataConfig, make_batch: MakeBatch
) -> None:
    """Nothing that the student answers depends on the voxels that it must predict; all of it does on the others."""
    objective = config(masked(way))
    student, _ = build(tiny_model, objective, data)
    view = make_batch(3, [0, 0, 1, 2], [True] * 3).views["global_a"]
    mask = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 0, 1], [1, 1, 0, 0, 0], [0, 1, 0, 1, 0]]).bool().flatten()

    def answers(noise_TP: Tensor) -> Tensor:
        noisy = {"global_a": replace(view, patches_TP=view.patches_TP + noise_TP)}
        out = student(noisy, 3, patches=Patches(masks={"global_a": mask}, hide=True))
        return torch.cat([out.patches["global_a"], out.logits["global_a"]]).detach()

    noise = torch.randn_like(view.patches_TP)
    plain = answers(0 * noise)
    assert plain.shape == (7 + 4, 12)
    assert torch.equal(answers(noise * mask.unsqueeze(1)), plain)
    assert (answers(noise * ~mask.unsqueeze(1)) - plain).abs().amax(1).min() > 1e-4


def test_the_predictor_knows_where_a_patch_was(
    tiny_model: VitTextConfig, data: DataConfig, make_batch: MakeBatch
) -> None:
    """Two hidden patches that trade places trade their answers, and nothing else of the crop matters to them."""
    objective = config(masked(HiddenFromStudent.dropped))
    student, _ = build(tiny_model, objective, data)
    assert student.predictor is not None
    g = torch.Generator().manual_seed(0)
    classes, tokens = torch.randn(2, 24, generator=g), torch.randn(5, 24, generator=g)
    seen, hidden = 40 * torch.randn(5, 3, generator=g), 40 * torch.randn(4, 3, generator=g)
    places = Places(visible_V3=seen, hidden_M3=hidden, visible_S=[3, 2], hidden_S=[2, 2])
    first = student.predictor(classes, tokens, places)
    swapped = replace(places, hidden_M3=hidden[[1, 0, 2, 3]])
    torch.testing.assert_close(student.predictor(classes, tokens, swapped), first[[1, 0, 2, 3]])
    assert (first[0] - first[1]).abs().max() > 1e-3
    other = tokens.clone()
    other[3:] += 1
    changed = student.predictor(classes, other, places)
    torch.testing.assert_close(changed[:2], first[:2])
    assert (changed[2:] - first[2:]).abs().max() > 1e-3


@pytest.mark.parametrize("way", list(HiddenFromStudent))
def test_gram_compares_what_the_student_encoded(
    way: HiddenFromStudent, tiny_model: VitTextConfig, data: DataConfig, make_batch: MakeBatch
) -> None:
    objective = config(masked(way), gram_weight=0.5)
    student, teacher = build(tiny_model, objective, data)
    batch = make_batch(3, [0, 0, 1, 2], [True] * 3)
    loss, report = build_objective(objective)(student, teacher, batch)
    torch.testing.assert_close(loss.detach(), report["masked_patches"] + 0.5 * report["gram"])
    assert 0 < report["gram"].item() < 4
    alone = config(MaskedPatchesConfig(), gram_weight=1.0, self_distillation_weight=1.0)
    student, teacher = build(tiny_model, alone, data)
    _, report = build_objective(alone)(student, teacher, batch)
    want = [
        gram_distances(student.fm.image(batch.views[n]).tokens_TD, teacher.fm.image(batch.views[n]).tokens_TD, [5] * 4)
        for n in ("global_a", "global_b")
    ]
    torch.testing.assert_close(report["gram"], torch.cat(want).mean().detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", list(HiddenFromStudent))
def test_a_few_steps_lower_the_loss_and_every_part_learns(
    way: HiddenFromStudent, tiny_model: VitTextConfig, data: DataConfig, make_batch: MakeBatch
) -> None:
    objective = config(masked(way), gram_weight=0.1, self_distillation_weight=1.0)
    student, teacher = build(tiny_model, objective, data)
    batch = make_batch(4, [0, 1, 1, 2, 3], [True] * 4)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss, report = build_objective(objective)(student, teacher, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(report["masked_patches"].item())
    assert losses[-1] < losses[0] - 0.2
    new = [(n, p) for n, p in student.named_parameters() if not n.startswith("fm.")]
    assert [n for n, p in new if p.grad is None or not p.grad.any()] == []


def test_a_batch_of_holes_gives_a_finite_loss_and_gradients_for_every_part(
    tiny_model: VitTextConfig, data: DataConfig, make_batch: MakeBatch
) -> None:
    for way in HiddenFromStudent:
        objective = config(masked(way), gram_weight=0.5)
        student, teacher = build(tiny_model, objective, data)
        loss, _ = build_objective(objective)(student, teacher, make_batch(2, [], [False] * 2))
        loss.backward()
        assert loss.item() == 0
        without = [n for n, p in student.named_parameters() if p.grad is None and not n.startswith("fm.")]
        assert without == []


def test_without_masks_nothing_is_added(tiny_model: VitTextConfig, data: DataConfig) -> None:
    plain = build_student(tiny_model, JointConfig(**SIZES), data, 40)  # type: ignore[arg-type]
    assert {n.split(".")[0] for n, _ in plain.named_parameters()} == {"fm", "head"}
    with pytest.raises(ConfigError, match="student_sees_globals"):
        config(masked(), student_sees_globals=False)
    with pytest.raises(ConfigError, match="weight"):
        MaskedPatchesConfig(weight=-1)
