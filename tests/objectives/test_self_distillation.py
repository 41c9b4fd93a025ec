from __future__ import annotations

import math

import pytest
import torch

from fm.config.errors import ConfigError
from fm.config.objective import Centering, JointConfig
from fm.objectives.self_distillation import (
    cross_entropy,
    sinkhorn_targets,
    softmax_targets,
    teacher_targets,
    teacher_temperature,
    top1_share,
)


def _same(x: torch.Tensor) -> torch.Tensor:
    return x


def _cosines(rows: int, prototypes: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(rows, prototypes, generator=g) - 1


def test_sinkhorn_equals_its_loop_form() -> None:
    cosine, temperature = _cosines(7, 5), 0.2
    q = [[math.exp(c / temperature) for c in row] for row in cosine.double().tolist()]
    for _ in range(3):
        for k in range(5):
            total = sum(row[k] for row in q)
            for row in q:
                row[k] /= total * 5
        for row in q:
            total = sum(row)
            row[:] = [v / total for v in row]
    got = sinkhorn_targets(cosine, temperature, 3, _same)
    torch.testing.assert_close(got.double(), torch.tensor(q, dtype=torch.float64), rtol=1e-5, atol=1e-7)


def test_sinkhorn_spreads_a_collapsed_teacher() -> None:
    """Every series prefers prototype 0; targets must still use the prototypes evenly."""
    cosine = _cosines(64, 4) * 0.2
    cosine[:, 0] += 0.8
    plain = (cosine / 0.1).softmax(1)
    spread = sinkhorn_targets(cosine, 0.1, 50, _same)
    assert plain.mean(0)[0] > 0.9
    torch.testing.assert_close(spread.mean(0), torch.full((4,), 0.25), rtol=0, atol=1e-3)
    torch.testing.assert_close(spread.sum(1), torch.ones(64))


def test_sinkhorn_is_finite_at_the_coldest_temperature() -> None:
    cosine = torch.full((4, 3), -1.0)
    cosine[0, 0] = 1.0
    got = sinkhorn_targets(cosine, 0.03, 3, _same)
    assert got.isfinite().all()


def test_the_teachers_temperature_goes_to_its_value_by_a_line() -> None:
    config = JointConfig(teacher_temperature=0.08, first_teacher_temperature=0.04, teacher_temperature_warmup_steps=4)
    got = [teacher_temperature(config, step) for step in range(6)]
    assert got == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.08, 0.08])
    assert teacher_temperature(JointConfig(), 0) == JointConfig().teacher_temperature
    with pytest.raises(ConfigError, match="teacher_temperature_warmup_steps=-1"):
        JointConfig(teacher_temperature_warmup_steps=-1)


def test_top1_share_counts_over_all_ranks() -> None:
    mine, theirs = torch.eye(4)[[0, 1, 1]], torch.eye(4)[[1, 3]]

    def gather(x: torch.Tensor) -> torch.Tensor:
        other = torch.stack([sum((row for row in theirs), torch.zeros(4))])
        return torch.cat([x, other])

    counts = [sum(int(row.argmax()) == k for row in [*mine, *theirs]) for k in range(4)]
    assert top1_share(mine, gather).item() == pytest.approx(max(counts) / sum(counts)) == pytest.approx(0.6)
    assert top1_share(torch.zeros(0, 4), _same).item() == 0
    assert top1_share(torch.eye(4)[[2, 2]], _same).item() == 1


def test_softmax_centering_takes_the_batch_mean_off() -> None:
    cosine = _cosines(6, 4)
    centre = cosine.mean(0)
    want = torch.stack([((row - centre) / 0.3).softmax(0) for row in cosine])
    torch.testing.assert_close(softmax_targets(cosine, 0.3, _same), want)
    shifted = softmax_targets(cosine + torch.tensor([0.5, 0.0, 0.0, 0.0]), 0.3, _same)
    torch.testing.assert_close(shifted, want)


def test_ranks_together_equal_one_process() -> None:
    """Two ranks of unequal size; the gather adds the other rank's partial sums."""
    whole = _cosines(9, 5)
    parts = whole[:4], whole[4:]
    for kind in Centering:
        want = teacher_targets(whole, kind, 0.1, 1, _same)
        for part, rows, other in ((parts[0], slice(0, 4), parts[1]), (parts[1], slice(4, 9), parts[0])):

            def gather(x: torch.Tensor, other: torch.Tensor = other, kind: Centering = kind) -> torch.Tensor:
                if x.numel() == 1:
                    remote = torch.tensor([float(len(other))])
                elif kind is Centering.sinkhorn:
                    remote = (other / 0.1 - 10).exp().sum(0, keepdim=True)
                else:
                    remote = other.sum(0, keepdim=True)
                return torch.cat([x, remote])

            got = teacher_targets(part, kind, 0.1, 1, gather)
            torch.testing.assert_close(got, want[rows], rtol=1e-5, atol=1e-6)


def test_targets_carry_no_gradient() -> None:
    assert not teacher_targets(_cosines(3, 2).requires_grad_(), Centering.sinkhorn, 0.1, 1, _same).requires_grad


def test_cross_entropy_equals_its_loop_form_in_value_and_gradient() -> None:
    student = _cosines(3, 4, 1).requires_grad_()
    target = _cosines(3, 4, 2).softmax(1)
    got = cross_entropy(target, student, 0.1)
    loops = []
    for s in range(3):
        total = sum(math.exp(v / 0.1) for v in student[s].tolist())
        loops.append(-sum(target[s, k].item() * (student[s, k].item() / 0.1 - math.log(total)) for k in range(4)))
    assert got.tolist() == pytest.approx(loops, rel=1e-5)
    (grad,) = torch.autograd.grad(got.sum(), student)
    torch.testing.assert_close(grad, ((student / 0.1).softmax(1) - target).detach() / 0.1, rtol=1e-4, atol=1e-5)
