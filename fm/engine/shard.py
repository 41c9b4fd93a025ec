"""This rank's part of masters and moments, addressed by parameter name whatever the ZeRO stage."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from fm.parallel.collectives import rank, world_size
from fm.parallel.slices import own_slice, size_of

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's two averages."""
STARTS = "starts"


class ShardError(ValueError):
    """Saved tensors that do not cover what is asked of them."""


@dataclass(kw_only=True, slots=True)
class Piece:
    """A run of elements of one parameter, and where this rank's optimiser holds them."""

    name: str
    start: int
    """First element within the flattened parameter."""
    length: int
    owner: Tensor
    """What the optimiser steps: the parameter itself (ZeRO-0), or this rank's part of the parameters of a group."""
    offset: int
    """First element within the flattened owner."""

    def within(self, tensor: Tensor) -> Tensor:
        """The piece as a (length,) view of a tensor with the owner's shape."""
        return tensor.detach().view(-1)[self.offset : self.offset + self.length]


class OptimizerShard:
    """Reads and writes the optimiser state of one rank as runs of elements under parameter names.

    What one layout saved another can load: ZeRO-0 holds whole parameters, ZeRO-1 and ZeRO-2 an equal part of all
    parameters laid end to end, which cuts some of them, ZeRO-3 a slice of every parameter. Elements, not ranks, are
    what a file speaks of.
    """

    def __init__(self, engine: Any, module: nn.Module) -> None:
        """Find this rank's pieces.

        Args:
            engine: the DeepSpeed engine, after its optimiser was built.
            module: the part of the engine's module that is trained; names are relative to it.
        """
        parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._zero = engine.optimizer if engine.zero_optimization() else None
        self._optimizer = engine.optimizer.optimizer if self._zero is not None else engine.optimizer
        self._sliced: bool = engine.zero_optimization_partition_weights()
        if self._sliced:
            self._pieces = list(self._slices(parameters))
        else:
            self._pieces = list(self._cut(parameters) if self._zero is not None else _whole(parameters))

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What this rank has to save: ``moment/parameter`` and ``step/parameter``, and where each run starts.

        At ZeRO-0 every rank holds everything and saves an equal number of parameters. The tensors are views.
        """
        found: dict[str, Tensor] = {}
        starts: dict[str, int] = {}
        mine = self._pieces if self._zero is not None else self._pieces[rank() :: world_size()]
        for piece in mine:
            state = self._optimizer.state.get(piece.owner)
            if not state:
                continue  # never stepped: a head without a loss, or no step yet
            starts[piece.name] = piece.start
            found |= {f"{moment}/{piece.name}": piece.within(state[moment]) for moment in MOMENTS}
            found[f"step/{piece.name}"] = torch.as_tensor(state["step"], dtype=torch.float32).detach().reshape(1)
        return found, {STARTS: json.dumps(starts, sort_keys=True)}

    @torch.no_grad()
    def load(self, masters: Path, moments: Sequence[Path]) -> None:
        """Fill masters and moments from files; afterwards the engine's weights are the masters in its precision.

        A collective under ZeRO, whose ranks then exchange the weights.

        Args:
            masters: safetensors with every parameter whole, by name.
            moments: the files of all ranks that saved, whatever their number.

        Raises:
            ShardError: a parameter is missing, or its moments have gaps.
        """
        with ExitStack() as stack:
            whole = stack.enter_context(safe_open(masters, "pt"))
            parts = [_Part(stack.enter_context(safe_open(path, "pt"))) for path in moments]
            names = set(whole.keys())
            # One owner holds many parameters and has one count of steps: the largest, as none was ever left out of it.
            latest = max((part.step(name) for part in parts for name in part.starts), default=0.0)
            for piece in self._pieces:
                if piece.name not in names:
                    raise ShardError(f"it holds no parameter {piece.name}")
                value = whole.get_tensor(piece.name).reshape(-1)
                if value.numel() < piece.start + piece.length:
                    raise ShardError(f"parameter {piece.name} has another size")
                piece.within(piece.owner).copy_(value[piece.start : piece.start + piece.length])
                holders = [part for part in parts if piece.name in part.starts]
                if holders:
                    step = latest if self._zero is not None else max(part.step(piece.name) for part in holders)
                    self._fill(piece, holders, step)
        if self._sliced:
            self._weights_from_masters()
        elif self._zero is not None:
            self._zero.update_lp_params()

    def _fill(self, piece: Piece, holders: Sequence[_Part], step: float) -> None:
        state, owner = self._optimizer.state[piece.owner], piece.owner
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=owner.device)
            state.update({moment: torch.zeros_like(owner, requires_grad=False) for moment in MOMENTS})
        state["step"].fill_(step)
        for moment in MOMENTS:
            target = piece.within(state[moment])
            filled = sum(part.copy(f"{moment}/{piece.name}", piece, target) for part in holders)
            if filled != piece.length:
                raise ShardError(f"{moment} of {piece.name} is there for {filled} of {piece.length} elements")

    def _cut(self, parameters: dict[str, nn.Parameter]) -> Iterator[Piece]:
        groups = self._optimizer.param_groups
        for name, parameter in parameters.items():
            # DeepSpeed's own record of where a parameter lies in this rank's partition; None where it does not.
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]  # set by DeepSpeed
            if mapping is not None:
                yield Piece(
                    name=name,
                    start=mapping.lp_fragment_address.start,
                    length=mapping.lp_fragment_address.numel,
                    owner=groups[mapping.param_group_index]["params"][0],
                    offset=mapping.hp_fragment_address.start,
                )

    def _slices(self, parameters: dict[str, nn.Parameter]) -> Iterator[Piece]:
        zero: Any = self._zero
        for name, parameter in parameters.items():
            # DeepSpeed's own record of the group that holds a parameter's slice, and where in it the slice begins.
            group, offset, run = zero.grad_position[zero.get_param_id(parameter)]
            start, length = own_slice(size_of(parameter))
            if run < length:
                raise RuntimeError(f"parameter {name} is cut otherwise than it was: DeepSpeed's layout has changed")
            if length:
                owner = zero.fp32_partitioned_groups_flat[group]
                yield Piece(name=name, start=start, length=length, owner=owner, offset=offset)

    def _weights_from_masters(self) -> None:
        # As at the end of a step; the weights that DeepSpeed keeps whole on every rank are gathered anew.
        zero: Any = self._zero
        zero._partition_all_parameters()
        for group in range(len(zero.fp32_partitioned_groups_flat)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        if zero.persistent_parameters:
            zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


class _Part:
    """One rank's file of moments."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.starts: dict[str, int] = json.loads((file.metadata() or {}).get(STARTS, "{}"))

    def step(self, name: str) -> float:
        return float(self._file.get_tensor(f"step/{name}"))

    def copy(self, key: str, piece: Piece, target: Tensor) -> int:
        """Copy what this file has of a piece; returns the number of elements."""
        saved = self._file.get_slice(key)
        first, length = self.starts[piece.name], int(saved.get_shape()[0])
        low, high = max(piece.start, first), min(piece.start + piece.length, first + length)
        if low >= high:
            return 0
        target[low - piece.start : high - piece.start].copy_(saved[low - first : high - first])
        return high - low


def _whole(parameters: dict[str, nn.Parameter]) -> Iterator[Piece]:
    for name, parameter in parameters.items():
        yield Piece(name=name, start=0, length=parameter.numel(), owner=parameter, offset=0)
