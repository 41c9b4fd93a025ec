from __future__ import annotations

from torch import nn

from fm.config.optim import OptimConfig
from fm.engine.groups import build_optimizer, parameter_groups


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.linear = nn.Linear(4, 3)
        self.scale = nn.Parameter(self.norm.weight.new_zeros(()))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_only_matrices_decay() -> None:
    net = Net()
    decayed, plain = parameter_groups(net, 0.1)
    assert decayed["weight_decay"] == 0.1 and decayed["params"] == [net.linear.weight]
    assert plain["weight_decay"] == 0.0
    expected = {id(p) for p in (net.words.weight, net.norm.weight, net.norm.bias, net.linear.bias, net.scale)}
    assert {id(p) for p in plain["params"]} == expected  # type: ignore[attr-defined]


def test_optimizer_takes_every_value_of_the_configuration() -> None:
    config = OptimConfig(learning_rate=0.3, beta1=0.7, beta2=0.8, epsilon=1e-5, weight_decay=0.2)
    group = build_optimizer(Net(), config).param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.3, (0.7, 0.8), 1e-5, 0.2)
