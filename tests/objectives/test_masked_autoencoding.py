from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from fm.batch import StudyBatch
from fm.config.data import DataConfig
from fm.config.masking import WidePredictorConfig
from fm.config.model import VitTextConfig
from fm.config.objective import MaeConfig
from fm.objectives import MaeObjective, build_objective, build_student, make_teacher
from fm.objectives.masked_autoencoding import MaeStudent, patch_targets, reconstruction_losses
from fm.objectives.masks import draw_masks
from fm.objectives.student import Patches, StudentOutput

MakeBatch = Callable[..., StudyBatch]


def config(**changes: object) -> MaeConfig:
    return MaeConfig(decoder=WidePredictorConfig(dim=16, depth=2, heads=2), **changes)  # type: ignore[arg-type]


def build(model: VitTextConfig, objective: MaeConfig, data: DataConfig) -> MaeStudent:
    torch.manual_seed(3)
    student = build_student(model, objective, data, 40)
    assert isinstance(student, MaeStudent)
    return student


def _answering(drawn: dict[str, Tensor]) -> Callable[..., StudentOutput]:
    """Stands for a student whose drawings are known."""
    return lambda *_: StudentOutput(logits={}, class_tokens={}, patches=drawn)


@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_equals_vitmaes(normalise: bool, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' model on random images; its drawings, patches and masks through our objective."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    decoder = {f"decoder_{name}": value for name, value in sizes.items()}
    shape = ViTMAEConfig(image_size=16, patch_size=4, num_channels=2, norm_pix_loss=normalise, **sizes, **decoder)
    theirs, pixels = ViTMAEForPreTraining(shape), torch.randn(3, 2, 16, 16)
    found = theirs(pixels)
    mask = found.mask.flatten().bool()
    view = replace(
        make_batch(3, [0, 1, 2], [True] * 3).views["global_a"],
        patches_TP=theirs.patchify(pixels).flatten(0, 1),
        position_T3=torch.zeros(48, 3),
        offsets_S1=16 * torch.arange(4),
    )
    batch = replace(make_batch(3, [0, 1, 2], [True] * 3), views={"global_a": view})
    monkeypatch.setattr("fm.objectives.masked_autoencoding.draw_masks", lambda *_: {"global_a": mask})
    answer = _answering({"global_a": found.logits.flatten(0, 1)[mask]})
    loss, _ = MaeObjective(config(normalise_target=normalise))(answer, answer, batch)  # type: ignore[arg-type]
    assert mask.sum() == 36
    torch.testing.assert_close(loss, found.loss)
    ours, want = (torch.autograd.grad(x, found.logits, retain_graph=True)[0] for x in (loss, found.loss))
    torch.testing.assert_close(ours, want)


@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_of_patches_equals_its_loop_form_in_value_and_gradient(normalise: bool) -> None:
    g = torch.Generator().manual_seed(1)
    drawn, patches = torch.randn(4, 6, generator=g).requires_grad_(), torch.randn(4, 6, generator=g)
    loss = reconstruction_losses(drawn, patch_targets(patches, normalise))
    loss.sum().backward()
    exact = drawn.detach().double().requires_grad_()
    rows = []
    for m in range(4):
        row = patches[m].double()
        mean = sum(row) / 6
        spread = (sum((v - mean) ** 2 for v in row) / 5 + 1e-6) ** 0.5
        target = [(v - mean) / spread if normalise else v for v in row]
        rows.append(sum((exact[m, p] - target[p]) ** 2 for p in range(6)) / 6)
    torch.stack(rows).sum().backward()  # type: ignore[arg-type]
    torch.testing.assert_close(loss.double(), torch.stack(rows), rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]
    assert drawn.grad is not None and exact.grad is not None
    torch.testing.assert_close(drawn.grad.double(), exact.grad, rtol=1e-5, atol=1e-6)


def test_hidden_patches_are_never_encoded(tiny_model: VitTextConfig, data: DataConfig, make_batch: MakeBatch) -> None:
    objective = config()
    student = build(tiny_model, objective, data)
    batch = make_batch(3, [0, 0, 1], [True] * 3)
    masks = draw_masks(batch, list(batch.views), objective.masks)
    seen: list[list[int]] = []
    student.fm.image.register_forward_pre_hook(lambda _, args: seen.append(args[0].lengths))
    first = student(batch.views, 3, patches=Patches(masks=masks, hide=True)).patches
    # Of five patches four are hidden, of two one: three quarters, rounded, and one stays.
    assert seen == [[1] * 6 + [1] * 3] and {n: len(x) for n, x in first.items()} == {
        "global_a": 12,
        "global_b": 12,
        "local_a": 3,
    }
    changed = {
        name: replace(view, patches_TP=view.patches_TP + masks[name].unsqueeze(1) * torch.randn_like(view.patches_TP))
        for name, view in batch.views.items()
    }
    again = student(changed, 3, patches=Patches(masks=masks, hide=True)).patches
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_few_steps_lower_the_loss(tiny_model: VitTextConfig, data: DataConfig, make_batch: MakeBatch) -> None:
    objective = config()
    student = build(tiny_model, objective, data)
    teacher, batch = make_teacher(student), make_batch(4, [0, 1, 1, 2, 3], [True] * 4)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss, report = build_objective(objective)(student, teacher, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(report["reconstruction"].item())
    assert losses[-1] < losses[0] - 0.2
    still = [n for n, p in student.named_parameters() if n.split(".")[0] == "predictor" and not p.grad.any()]  # type: ignore[union-attr]
    assert still == [] and losses[0] == pytest.approx(2, abs=0.8)


def test_holes_give_zero_and_probing_finds_embeddings(
    tiny_model: VitTextConfig, data: DataConfig, make_batch: MakeBatch
) -> None:
    student = build(tiny_model, config(), data)
    loss, _ = build_objective(config())(student, make_teacher(student), make_batch(2, [], [False] * 2))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.predictor.parameters())
    batch = make_batch(2, [0, 1], [True] * 2)
    out = student({"global_a": batch.views["global_a"]}, 2, "global_a", batch.text)
    torch.testing.assert_close(out.image_BE, student.fm.embed_study(batch.views["global_a"], 2))
