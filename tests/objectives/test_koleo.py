from __future__ import annotations

import math

import pytest
import torch

from fm.objectives.koleo import koleo


def test_equals_its_loop_form_and_gradient() -> None:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    unit = [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in x.tolist()]
    want = 0.0
    for s in range(6):
        want -= math.log(min(math.dist(unit[s], unit[t]) for t in range(6) if t != s) + 1e-8) / 6
    assert koleo(x).item() == pytest.approx(want, rel=1e-5)
    step = x.detach() - 1e-2 * torch.autograd.grad(koleo(x), x)[0]
    assert koleo(step) < koleo(x)


def test_one_row_and_equal_rows_stay_finite() -> None:
    one = torch.ones(1, 3, requires_grad=True)
    koleo(one).backward()
    assert koleo(one).item() == 0 and torch.equal(one.grad, torch.zeros(1, 3))  # type: ignore[arg-type]
    twins = torch.ones(2, 3, requires_grad=True)
    koleo(twins).backward()
    assert twins.grad is not None and twins.grad.isfinite().all()
