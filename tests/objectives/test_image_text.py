from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel
from transformers.models.clip import modeling_clip

from fm.objectives.image_text import (
    Pairs,
    clip_loss,
    clip_loss_by_rows,
    retrieved_share,
    siglip_loss,
    siglip_loss_by_rows,
)

SCALE, BIAS = torch.tensor(7.0, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)


def positives(identity: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    return Pairs(identity_B=identity, patient_B=identity, present_B=present, mask_same_patient=False).rows(
        0, len(present)
    )[0]


def candidates(
    positive: torch.Tensor, patient: torch.Tensor, present: torch.Tensor, mask_same_patient: bool
) -> torch.Tensor:
    usable = present.unsqueeze(1) & present.unsqueeze(0)
    return usable & (positive | (patient.unsqueeze(1) != patient.unsqueeze(0))) if mask_same_patient else usable


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


def test_siglip_equals_transformers_on_plain_pairs() -> None:
    """Value and gradients; the text tower of the other is fed through its own embeddings of texts and images."""
    settings = {"hidden_size": 6, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {**settings, "image_size": 4, "patch_size": 4}
    text_config = {**settings, "vocab_size": 9, "max_position_embeddings": 4, "projection_size": 6}
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(text_config=text_config, vision_config=vision)).eval()
    pixels, tokens = torch.randn(8, 3, 4, 4), torch.randint(9, (8, 4))
    theirs = model(input_ids=tokens, pixel_values=pixels, return_loss=True)
    image, text = (x.detach().requires_grad_() for x in (theirs.image_embeds, theirs.text_embeds))
    present = torch.ones(8, dtype=torch.bool)
    positive = positives(torch.arange(8), present)
    scale, bias = model.logit_scale.exp().squeeze(), model.logit_bias.squeeze()
    ours = siglip_loss(image, text, scale, bias, positive, candidates(positive, torch.arange(8), present, True))
    torch.testing.assert_close(ours, theirs.loss)
    want = torch.autograd.grad(theirs.loss, (theirs.image_embeds, theirs.text_embeds, *_learnt(model)))
    got = torch.autograd.grad(ours, (image, text, *_learnt(model)))
    for mine, other in zip(got, want, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-7)


def _learnt(model: SiglipModel) -> tuple[torch.Tensor, torch.Tensor]:
    return model.logit_scale, model.logit_bias


def _batch(rows: int) -> tuple[list[torch.Tensor], Pairs]:
    """Studies of which every fifth has no report, neighbours share reports, and every third its neighbour's patient."""
    rng = torch.Generator().manual_seed(rows)
    pairs = Pairs(
        identity_B=torch.arange(rows) // 2,
        patient_B=torch.randint(rows, (rows,), generator=rng),
        present_B=torch.arange(rows) % 5 != 3,
        mask_same_patient=True,
    )
    leaves = [_unit(rows, 4), _unit(rows, 5), SCALE.float(), BIAS.float()]
    return [leaf.clone().requires_grad_() for leaf in leaves], pairs


@pytest.mark.parametrize("chunk", [1, 4, 7, 16, 100])
@pytest.mark.parametrize("mask", [True, False])
def test_by_rows_equals_the_whole_matrix_in_value_and_gradient(chunk: int, mask: bool) -> None:
    leaves, pairs = _batch(16)
    pairs.mask_same_patient = mask
    image, text, scale, bias = leaves
    positive = positives(pairs.identity_B, pairs.present_B)
    candidate = candidates(positive, pairs.patient_B, pairs.present_B, mask)
    assert torch.equal(pairs.rows(0, 16)[0], positive) and torch.equal(pairs.rows(0, 16)[1], candidate)
    for whole, parts, inputs in (
        (
            clip_loss(image, text, scale, positive, candidate),
            clip_loss_by_rows(image, text, scale, pairs, chunk),
            leaves[:3],
        ),
        (
            siglip_loss(image, text, scale, bias, positive, candidate),
            siglip_loss_by_rows(image, text, scale, bias, pairs, chunk),
            leaves,
        ),
    ):
        torch.testing.assert_close(parts, whole, rtol=1e-6, atol=0)
        for mine, want in zip(torch.autograd.grad(parts, inputs), torch.autograd.grad(whole, inputs), strict=True):
            torch.testing.assert_close(mine, want, rtol=1e-5, atol=1e-7)
    best = (image @ text.T).masked_fill(~candidate, -2).argmax(1, keepdim=True)
    want = positive.gather(1, best).sum() / pairs.present_B.sum()
    assert retrieved_share(image, text, pairs, chunk).item() == pytest.approx(want.item())


class _Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return found


def _memory(rows: int, chunk: int) -> tuple[int, int]:
    """Elements kept for the backward pass, and of the largest tensor of both passes."""
    (image, text, scale, bias), pairs = _batch(rows)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with _Largest() as largest:  # type: ignore[no-untyped-call]  # torch leaves it untyped
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = clip_loss_by_rows(image, text, scale, pairs, chunk)
            loss = loss + siglip_loss_by_rows(image, text, scale, bias, pairs, chunk)
        before_backward = sum(kept.values())
        loss.backward()
    return before_backward, largest.elements


def test_memory_by_rows_grows_with_the_batch_and_not_with_its_square() -> None:
    kept, largest = zip(*(_memory(rows, 32) for rows in (256, 512, 1024)), strict=True)
    assert largest == (32 * 256, 32 * 512, 32 * 1024)
    assert kept[1] / kept[0] < 2.1 and kept[2] / kept[1] < 2.1


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
