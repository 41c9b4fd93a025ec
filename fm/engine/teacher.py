"""The teacher: a float32 exponential moving average of the student's float32 masters, outside the DeepSpeed engine."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn


class Teacher:
    """Holds the averaged copy of the student.

    In bf16 an average with momentum 0.999 never moves (1.0 stays 1.0 over 1000 steps), so both the copy and what it
    averages are float32. It is no submodule of the trained module: the engine would cast, shard and count it.
    """

    def __init__(self, module: nn.Module, frozen: Collection[str] = ()) -> None:
        """Take a float32 copy of the student, without gradients, in eval mode.

        Args:
            module: the copy.
            frozen: parameters that the student does not train: they have no master and stay what they are.
        """
        self.module = module
        self._frozen = frozenset(frozen)
        self._parameters = dict(module.named_parameters())
        if wrong := [name for name, p in self._parameters.items() if p.dtype != torch.float32 or p.requires_grad]:
            raise ValueError(f"the teacher's {wrong[0]} must be float32 and without gradient")

    @torch.no_grad()
    def copy_from(self, masters: Mapping[str, Tensor]) -> None:
        """Start the average at the masters themselves."""
        self.update(masters, 0.0)

    @torch.no_grad()
    def update(self, masters: Mapping[str, Tensor], momentum: float) -> None:
        """teacher ← momentum · teacher + (1 − momentum) · master, for every parameter that is trained or given.

        Raises:
            KeyError: a master is missing.
        """
        names = [name for name in self._parameters if name not in self._frozen or name in masters]
        mine: list[Tensor] = [self._parameters[name] for name in names]
        theirs = [masters[name] for name in names]
        torch._foreach_lerp_(mine, theirs, 1.0 - momentum)

    def state(self) -> dict[str, Tensor]:
        """Name → weights."""
        return {name: p.detach() for name, p in self._parameters.items()}
