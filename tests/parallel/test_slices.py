from __future__ import annotations

import pytest
import torch
from torch import nn

from fm.parallel import slices
from fm.parallel.slices import Sliced, own_slice, size_of, whole_to_write


def network() -> nn.Sequential:
    """Leaves whose sizes no two ranks share evenly: 15 + 3, 4, 3 + 1 elements."""
    torch.manual_seed(0)
    found = nn.Sequential(nn.Linear(5, 3), nn.Sequential(nn.Embedding(1, 4), nn.Linear(3, 1)))
    return found.requires_grad_(False)


@pytest.mark.parametrize("size", [1, 3, 7, 8, 15])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_slices_cover_a_parameter_once(size: int, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    covered: list[int] = []
    for own in range(ranks):
        monkeypatch.setattr(slices, "rank", lambda own=own: own)
        monkeypatch.setattr(slices, "world_size", lambda: ranks)
        start, length = own_slice(size)
        assert length <= -(-size // ranks)
        covered += range(start, start + length)
    assert covered == list(range(size))


def test_a_part_is_whole_only_while_it_runs() -> None:
    whole, cut = network(), network()
    sliced = Sliced(cut)
    assert {name: own.numel() for name, own in sliced.own.items()} == {
        name: p.numel() for name, p in whole.named_parameters()
    }
    sizes: list[list[int]] = []
    cut[0].register_forward_hook(lambda *_: sizes.append([p.numel() for p in cut.parameters()]))
    x = torch.randn(2, 5)
    assert torch.equal(cut[0](x), whole[0](x))
    assert sizes == [[0, 0, 0, 0, 0]]  # the hook of a later registration runs after the weights are freed
    assert [p.numel() for p in cut.parameters()] == [0] * 5
    assert all(torch.equal(value, dict(whole.named_parameters())[name]) for name, value in sliced.whole())


def test_what_is_done_to_a_slice_is_done_to_the_network() -> None:
    whole, cut = network(), network()
    for own in Sliced(cut).own.values():
        own.mul_(2)
    x = torch.randn(2, 5)
    assert torch.equal(cut[0](x), 2 * whole[0](x))


def test_weights_are_freed_when_a_forward_pass_fails() -> None:
    cut = network()
    Sliced(cut)
    with pytest.raises(RuntimeError):
        cut[0](torch.randn(2, 4))
    assert next(cut.parameters()).numel() == 0


def test_parameters_that_nobody_cut_are_left_alone() -> None:
    linear = nn.Linear(5, 3).requires_grad_(False)
    assert size_of(linear.weight) == 15
    with whole_to_write(linear.parameters()):
        linear.weight.zero_()
    assert not linear.weight.any()
