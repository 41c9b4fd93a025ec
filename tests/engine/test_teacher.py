from __future__ import annotations

import pytest
import torch
from torch import nn

from fm.engine.teacher import Teacher


def frozen(value: float) -> nn.Linear:
    linear = nn.Linear(1, 1, bias=False)
    nn.init.constant_(linear.weight, value)
    return linear.requires_grad_(False)


def test_average_follows_its_formula() -> None:
    teacher = Teacher(frozen(1.0))
    teacher.update({"weight": torch.tensor([[3.0]])}, 0.75)
    assert teacher.state()["weight"].item() == pytest.approx(1.5)
    teacher.update({"weight": torch.tensor([[0.0]])}, 1.0)
    assert teacher.state()["weight"].item() == pytest.approx(1.5)
    teacher.copy_from({"weight": torch.tensor([[7.0]])})
    assert teacher.state()["weight"].item() == 7.0


def test_what_is_frozen_stays_but_is_loaded() -> None:
    pair = nn.ModuleDict({"a": frozen(1.0), "b": frozen(2.0)})
    teacher = Teacher(pair, ["b.weight"])
    teacher.update({"a.weight": torch.tensor([[3.0]])}, 0.5)
    assert [float(p) for p in teacher.state().values()] == [2.0, 2.0]
    teacher.copy_from({"a.weight": torch.tensor([[5.0]]), "b.weight": torch.tensor([[6.0]])})
    assert [float(p) for p in teacher.state().values()] == [5.0, 6.0]
    with pytest.raises(KeyError, match=r"a\.weight"):
        teacher.update({"b.weight": torch.tensor([[6.0]])}, 0.5)


def test_a_cut_teacher_averages_and_loads_as_a_whole_one() -> None:
    """One rank: its slice is all of a parameter, flat. Two ranks are in tests/pretrain."""
    teacher, x = Teacher(frozen(2.0)), torch.tensor([[1.0]])
    teacher.cut()
    assert teacher.names == {"weight"} and next(teacher.module.parameters()).numel() == 0
    teacher.update({"weight": torch.tensor([4.0])}, 0.5)
    assert teacher.module(x).item() == 3.0 and next(teacher.module.parameters()).numel() == 0
    teacher.load("weight", torch.tensor([[9.0]]))
    assert teacher.state()["weight"].tolist() == [[9.0]] and teacher.module(x).item() == 9.0


def test_float32_moves_where_bf16_would_stand_still() -> None:
    """1000 steps of momentum 0.999 towards a master 10 % away: 63 % of the way there."""
    teacher = Teacher(frozen(1.0))
    low = torch.tensor(1.0, dtype=torch.bfloat16)
    for _ in range(1000):
        teacher.update({"weight": torch.tensor([[1.1]])}, 0.999)
        low.lerp_(torch.tensor(1.1, dtype=torch.bfloat16), 0.001)
    assert teacher.state()["weight"].item() == pytest.approx(1.0632, abs=1e-4)
    assert low.item() == 1.0


def test_other_precisions_and_missing_masters_are_refused() -> None:
    with pytest.raises(ValueError, match="weight must be float32"):
        Teacher(frozen(1.0).bfloat16())
    with pytest.raises(ValueError, match="without gradient"):
        Teacher(nn.Linear(1, 1))
    with pytest.raises(KeyError, match="weight"):
        Teacher(frozen(1.0)).update({}, 0.5)
