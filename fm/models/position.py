"""Positions in millimetres: 3D axial rotary embedding and an additive Fourier embedding.

Everything here is float32 until the last cast: bf16 resolves 512 mm to 4 mm only.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def periods_mm(count: int, shortest: float, longest: float, device: torch.device | None = None) -> Tensor:
    """`count` wavelengths in mm, geometric from `shortest` to `longest`, float32."""
    return torch.logspace(math.log10(shortest), math.log10(longest), count, dtype=torch.float32, device=device)


def phases(position_T3: Tensor, count: int, shortest: float, longest: float) -> Tensor:
    """(T, 3 · count) float32: 2π · mm / period, the axes R, A, S one after the other."""
    period = periods_mm(count, shortest, longest, position_T3.device)
    return (position_T3.float().unsqueeze(-1) * (2 * math.pi / period)).flatten(1)


def rotary_table(position_T3: Tensor, head_dim: int, shortest: float, longest: float, dtype: torch.dtype) -> Tensor:
    """(2, T, 1, head_dim): cosines, then sines, for :func:`rotate`.

    Each axis turns ``head_dim // 6`` pairs of channels; the channels left over stay as they are (angle zero). A token
    at the origin (class token, registers) is not turned.
    """
    angle = phases(position_T3, head_dim // 6, shortest, longest)
    angle = torch.nn.functional.pad(angle, (0, head_dim // 2 - angle.shape[1]))
    cos, sin = angle.cos(), angle.sin()
    table = torch.stack([torch.cat([cos, cos], 1), torch.cat([-sin, sin], 1)])
    return table.to(dtype).unsqueeze(2)


def rotate(x_THC: Tensor, table: Tensor) -> Tensor:
    """Turn channel pairs (c, c + C/2) by the table's angles, so that q·k depends on differences of position only.

    RoFormer, arXiv 2104.09864, per axis of space.
    """
    out: Tensor = _Rotation.apply(x_THC, table)  # type: ignore[no-untyped-call]
    return out


class _Rotation(torch.autograd.Function):
    """The derivative of a turn is the turn back: two passes over memory each way, where autograd would take eleven."""

    @staticmethod
    def forward(ctx: Any, x_THC: Tensor, table: Tensor) -> Tensor:
        """Turn by the table; the table takes no gradient."""
        ctx.save_for_backward(table)
        ctx.dtype = x_THC.dtype
        return _turned(x_THC, table, 1)

    @staticmethod
    def backward(ctx: Any, grad_THC: Tensor) -> tuple[Tensor, None]:
        """Turn back."""
        (table,) = ctx.saved_tensors
        return _turned(grad_THC, table, -1).to(ctx.dtype), None


def _turned(x_THC: Tensor, table: Tensor, sense: int) -> Tensor:
    half = x_THC.shape[-1] // 2
    out = x_THC * table[0]
    out[..., :half].addcmul_(x_THC[..., half:], table[1, ..., :half], value=sense)
    out[..., half:].addcmul_(x_THC[..., :half], table[1, ..., half:], value=sense)
    return out


class FourierPosition(nn.Module):
    """Embedding of a position in mm, to add or to scale by: a linear map of sines and cosines at 8 periods per axis."""

    frequencies = 8

    def __init__(self, dim: int, shortest: float, longest: float) -> None:
        super().__init__()
        self.shortest, self.longest = shortest, longest
        self.linear = nn.Linear(6 * self.frequencies, dim)

    def forward(self, position_T3: Tensor) -> Tensor:
        """(T, 3) mm to (T, dim) in the dtype of the weights."""
        angle = phases(position_T3, self.frequencies, self.shortest, self.longest)
        out: Tensor = self.linear(torch.cat([angle.sin(), angle.cos()], dim=1).to(self.linear.weight.dtype))
        return out
