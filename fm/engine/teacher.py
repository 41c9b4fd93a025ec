"""The teacher: a float32 exponential moving average of the student's float32 masters, outside the DeepSpeed engine."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from fm.parallel.slices import Sliced, own_slice


class Teacher:
    """Holds the averaged copy of the student.

    In bf16 an average with momentum 0.999 never moves (1.0 stays 1.0 over 1000 steps), so both the copy and what it
    averages are float32. It is no submodule of the trained module: the engine would cast, shard and count it.

    At ZeRO-3 it is cut over the ranks as the masters are (:meth:`cut`): each rank averages its own slice of every
    parameter with its own slice of the master, without a word to the others, and the forward pass gathers the weights
    module by module (:class:`fm.parallel.slices.Sliced`). Below ZeRO-3 every rank holds and averages all of it.
    """

    def __init__(self, module: nn.Module, frozen: Collection[str] = ()) -> None:
        """Take a float32 copy of the student, without gradients, in eval mode.

        Args:
            module: the copy.
            frozen: parameters that the student does not train: they have no master and stay what they are.
        """
        self.module = module
        self._frozen = frozenset(frozen)
        self._parameters: Mapping[str, Tensor] = dict(module.named_parameters())
        self._sliced: Sliced | None = None
        if wrong := [name for name, p in self._parameters.items() if p.dtype != torch.float32 or p.requires_grad]:
            raise ValueError(f"the teacher's {wrong[0]} must be float32 and without gradient")

    def cut(self) -> None:
        """Keep this rank's slice of every parameter only; from now on masters come in slices too."""
        self._sliced = Sliced(self.module)
        self._parameters = self._sliced.own

    @property
    def names(self) -> set[str]:
        """Of all parameters, frozen ones included."""
        return set(self._parameters)

    @torch.no_grad()
    def copy_from(self, masters: Mapping[str, Tensor]) -> None:
        """Start the average at the masters themselves."""
        self.update(masters, 0.0)

    @torch.no_grad()
    def update(self, masters: Mapping[str, Tensor], momentum: float) -> None:
        """teacher ← momentum · teacher + (1 − momentum) · master, for every parameter that is trained or given.

        Args:
            masters: by name; whole, or after :meth:`cut` this rank's flat slices.
            momentum: of the average.

        Raises:
            KeyError: a master is missing.
        """
        names = [name for name in self._parameters if name not in self._frozen or name in masters]
        mine: list[Tensor] = [self._parameters[name] for name in names]
        theirs = [masters[name] for name in names]
        torch._foreach_lerp_(mine, theirs, 1.0 - momentum)

    @torch.no_grad()
    def load(self, name: str, weights: Tensor) -> None:
        """Take a parameter's weights, whole whatever this rank keeps of them."""
        own = self._parameters[name]
        if self._sliced is not None:
            start, length = own_slice(weights.numel())
            weights = weights.reshape(-1)[start : start + length]
        own.copy_(weights)

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """Name and weights, one after the other; after :meth:`cut` a collective that all ranks end."""
        if self._sliced is not None:
            yield from self._sliced.whole()
        else:
            yield from ((name, p.detach()) for name, p in self._parameters.items())

    def state(self) -> dict[str, Tensor]:
        """Name → weights, all at once; see :meth:`whole`."""
        return dict(self.whole())
