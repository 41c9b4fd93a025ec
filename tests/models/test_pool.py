from __future__ import annotations

import torch

from fm.models.pool import GatedPool


def test_equals_the_loop_form_and_an_absent_series_is_absent() -> None:
    torch.manual_seed(0)
    pool = GatedPool(8, 2)
    tokens = torch.randn(10, 8)
    segment = torch.tensor([0, 0, 0, 3, 1, 1, 3, 1, 1, 1])
    got = pool(tokens, segment, 4)
    for s in range(4):
        own = tokens[segment == s]
        want = torch.zeros(8)
        for head in range(2):
            scores = [pool.score(torch.tanh(pool.hidden(x)) * torch.sigmoid(pool.gate(x)))[head] for x in own]
            weights = torch.stack(scores).softmax(0) if scores else []
            for weight, x in zip(weights, own, strict=True):
                want[4 * head : 4 * head + 4] += weight * pool.value(x)[4 * head : 4 * head + 4]
        if len(own):
            want += pool.peak(own).amax(0)
        torch.testing.assert_close(got[s], want, rtol=1e-5, atol=1e-6)
    assert torch.equal(got[2], torch.zeros(8))


def test_huge_scores_do_not_overflow() -> None:
    torch.manual_seed(0)
    pool = GatedPool(8, 2)
    with torch.no_grad():
        pool.score.weight.mul_(1e4)
    tokens = torch.randn(6, 8, requires_grad=True)
    out = pool(tokens, torch.tensor([0, 0, 0, 1, 1, 1]), 2)
    out.sum().backward()
    assert out.isfinite().all() and tokens.grad is not None and tokens.grad.isfinite().all()
