"""Parameter groups and the optimiser."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fm.config.optim import OptimConfig

RATE = "rate"
"""Key of a group: what its learning rate is multiplied with."""


def parameter_groups(
    module: nn.Module, weight_decay: float, rates: Mapping[str, float] | None = None
) -> list[dict[str, object]]:
    """Two AdamW groups: matrices with weight decay; vectors, scalars and embeddings without.

    Frozen parameters are in neither; an empty group is left out. With `rates`, by name, there are two groups for each
    different factor of the learning rate, which the engine reads under :data:`RATE`.
    """
    embeddings = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    found: dict[float, tuple[list[nn.Parameter], list[nn.Parameter]]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decayed, plain = found.setdefault(rates[name] if rates else 1.0, ([], []))
            (plain if parameter.ndim < 2 or id(parameter) in embeddings else decayed).append(parameter)
    groups: list[dict[str, object]] = []
    for rate, (decayed, plain) in found.items():
        factor = {RATE: rate} if rates else {}
        groups.append({"params": decayed, "weight_decay": weight_decay, **factor})
        groups.append({"params": plain, "weight_decay": 0.0, **factor})
    return [group for group in groups if group["params"]]


def build_optimizer(
    module: nn.Module, config: OptimConfig, rates: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """AdamW with torch's fused step, which needs no compiler; the engine sets the learning rate at every step."""
    return torch.optim.AdamW(
        parameter_groups(module, config.weight_decay, rates),
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=True,
    )
