from __future__ import annotations

import math

import pytest
import torch
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip import modeling_clip

from fm.objectives.image_text import candidates, clip_loss, positives, siglip_loss

SCALE, BIAS = torch.tensor(7.0, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)


def _unit(rows: int, seed: int) -> torch.Tensor:
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(x, dim=1).float()


def _pairs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """6 studies: 0 and 1 share a report, 2 and 3 a patient, 4 has no report."""
    present = torch.tensor([True, True, True, True, False, True])
    identity = torch.tensor([11, 11, 12, 13, 0, 14])
    patient = torch.tensor([1, 2, 3, 3, 4, 5])
    positive = positives(identity, present)
    return positive, candidates(positive, patient, present, True), present


def test_which_pairs_are_positive_negative_and_neither() -> None:
    positive, candidate, _ = _pairs()
    want = torch.eye(6, dtype=torch.bool)
    want[4, 4] = False
    want[0, 1] = want[1, 0] = True
    assert torch.equal(positive, want)
    assert not candidate[2, 3] and not candidate[3, 2] and candidate[2, 2]
    assert not candidate[4].any() and not candidate[:, 4].any()
    assert candidate[0, 2] and candidate[5, 0]
    present = torch.ones(2, dtype=torch.bool)
    same = torch.tensor([3, 3])
    assert candidates(positives(torch.tensor([1, 2]), present), same, present, False).all()


def _clip_loop(image: torch.Tensor, text: torch.Tensor, positive: torch.Tensor, candidate: torch.Tensor) -> float:
    def side(a: list[list[float]], b: list[list[float]], pos: torch.Tensor, cand: torch.Tensor) -> float:
        rows = []
        for i in range(6):
            if not pos[i].any():
                continue
            scores = [SCALE.item() * sum(x * y for x, y in zip(a[i], b[j], strict=True)) for j in range(6)]
            total = sum(math.exp(scores[c]) for c in range(6) if cand[i, c])
            logs = [math.log(math.exp(scores[j]) / total) for j in range(6) if pos[i, j]]
            rows.append(-sum(logs) / len(logs))
        return sum(rows) / len(rows)

    a, b = image.double().tolist(), text.double().tolist()
    return (side(a, b, positive, candidate) + side(b, a, positive.T, candidate.T)) / 2


def test_clip_equals_its_loop_form() -> None:
    image, text = _unit(6, 0), _unit(6, 1)
    positive, candidate, _ = _pairs()
    got = clip_loss(image, text, SCALE.float(), positive, candidate)
    assert got.item() == pytest.approx(_clip_loop(image, text, positive, candidate), rel=1e-5)


def test_siglip_equals_its_loop_form() -> None:
    image, text = _unit(6, 0), _unit(6, 1)
    positive, candidate, _ = _pairs()
    total = 0.0
    for i in range(6):
        for j in range(6):
            if candidate[i, j]:
                logit = SCALE.item() * float(image[i].double() @ text[j].double()) + BIAS.item()
                total += math.log(1 + math.exp(-logit if positive[i, j] else logit))
    got = siglip_loss(image, text, SCALE.float(), BIAS.float(), positive, candidate)
    assert got.item() == pytest.approx(total / 5, rel=1e-5)


def test_clip_equals_transformers_on_plain_pairs() -> None:
    image, text = _unit(8, 2), _unit(8, 3)
    present = torch.ones(8, dtype=torch.bool)
    positive = positives(torch.arange(8), present)
    candidate = candidates(positive, torch.arange(8), present, True)
    logits = 7.0 * text @ image.T
    assert CLIPModel.config_class is CLIPConfig
    want = modeling_clip.image_text_contrastive_loss(logits)
    torch.testing.assert_close(clip_loss(image, text, torch.tensor(7.0), positive, candidate), want)


def test_absent_rows_and_false_negatives_carry_no_gradient() -> None:
    image, text = _unit(6, 0).requires_grad_(), _unit(6, 1).requires_grad_()
    positive, candidate, _ = _pairs()
    scale, bias = SCALE.float(), BIAS.float()
    for loss in (
        clip_loss(image, text, scale, positive, candidate),
        siglip_loss(image, text, scale, bias, positive, candidate),
    ):
        image_grad, text_grad = torch.autograd.grad(loss, (image, text))
        assert torch.equal(image_grad[4], torch.zeros(6)) and torch.equal(text_grad[4], torch.zeros(6))
        assert (image_grad[[0, 1, 2, 3, 5]].abs().amax(1) > 0).all()
    # Text 3 is of image 2's patient: with image 2 alone in the loss, text 3 gets nothing.
    only = torch.zeros_like(positive)
    only[2, 2] = True
    row = candidate & (torch.arange(6) == 2).unsqueeze(1)
    (grad,) = torch.autograd.grad(siglip_loss(image, text, scale, bias, only, row), text)
    assert torch.equal(grad[3], torch.zeros(6)) and grad[0].abs().max() > 0


def test_without_any_report_the_loss_is_zero_and_has_a_gradient() -> None:
    image, text = _unit(3, 0).requires_grad_(), _unit(3, 1)
    none = torch.zeros(3, 3, dtype=torch.bool)
    loss = clip_loss(image, text, SCALE.float(), none, none)
    loss.backward()
    assert loss.item() == 0 and image.grad is not None and torch.equal(image.grad, torch.zeros(3, 6))
