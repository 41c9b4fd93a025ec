from __future__ import annotations

import math

import torch

from fm.models.position import FourierPosition, periods_mm, rotary_table, rotate

HEAD = 20  # 3 pairs per axis, one pair left over


def _table(position: torch.Tensor) -> torch.Tensor:
    return rotary_table(position, HEAD, 16.0, 800.0, torch.float32)


def test_scores_depend_on_differences_of_position_only() -> None:
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(6, 2, HEAD, generator=g), torch.randn(6, 2, HEAD, generator=g)
    position = 100 * torch.randn(6, 3, generator=g)
    moved = position + torch.tensor([37.0, -12.5, 80.0])
    here = torch.einsum("ihc,jhc->hij", rotate(q, _table(position)), rotate(k, _table(position)))
    there = torch.einsum("ihc,jhc->hij", rotate(q, _table(moved)), rotate(k, _table(moved)))
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)
    unturned = torch.einsum("ihc,jhc->hij", q, k)
    assert (here - unturned).abs().max() > 0.1


def test_one_pair_turns_by_two_pi_times_mm_over_period() -> None:
    period = periods_mm(HEAD // 6, 16.0, 800.0)
    x = torch.zeros(1, 1, HEAD)
    x[0, 0, 3 + 1] = 1.0  # second period of the second axis, A
    turned = rotate(x, _table(torch.tensor([[5.0, 11.0, -7.0]])))[0, 0]
    angle = 2 * math.pi * 11.0 / period[1].item()
    assert math.isclose(turned[4].item(), math.cos(angle), abs_tol=1e-5)
    assert math.isclose(turned[4 + HEAD // 2].item(), math.sin(angle), abs_tol=1e-5)


def test_the_origin_and_the_left_over_channels_are_not_turned() -> None:
    x = torch.randn(2, 3, HEAD)
    turned = rotate(x, _table(torch.tensor([[0.0, 0.0, 0.0], [40.0, 50.0, 60.0]])))
    assert torch.equal(turned[0], x[0])
    assert torch.equal(turned[1, :, [9, 19]], x[1, :, [9, 19]])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_half_a_millimetre_at_half_a_metre_still_counts() -> None:
    near, far = (_table(torch.tensor([[512.0 + d, 0.0, 0.0]])) for d in (0.0, 0.5))
    assert (near - far).abs().max() > 0.1  # 2π · 0.5 / 16 = 0.196 rad


def test_fourier_embedding_is_a_linear_map_of_sines_and_cosines() -> None:
    torch.manual_seed(0)
    layer = FourierPosition(5, 16.0, 800.0)
    position = torch.tensor([[3.0, -20.0, 55.0]])
    features = []
    for wave in (math.sin, math.cos):
        for axis in range(3):
            features += [wave(2 * math.pi * position[0, axis].item() / p) for p in periods_mm(8, 16.0, 800.0).tolist()]
    want = layer.linear.weight @ torch.tensor(features) + layer.linear.bias
    torch.testing.assert_close(layer(position)[0], want, rtol=1e-4, atol=1e-5)


def test_the_derivative_of_a_turn_is_the_turn_back() -> None:
    """Against what autograd makes of the same turn written out."""
    torch.manual_seed(0)
    x, weight = torch.randn(5, 3, HEAD, dtype=torch.float64, requires_grad=True), torch.randn(5, 3, HEAD)
    table = _table(50 * torch.randn(5, 3)).double()
    (weight * rotate(x, table)).sum().backward()
    found, x.grad = x.grad, None
    half = HEAD // 2
    plain = x * table[0] + torch.cat([x[..., half:], x[..., :half]], dim=-1) * table[1]
    torch.testing.assert_close(rotate(x, table), plain, rtol=1e-12, atol=1e-12)
    (weight * plain).sum().backward()
    torch.testing.assert_close(found, x.grad, rtol=1e-12, atol=1e-12)
