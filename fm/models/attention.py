"""Attention within each sequence of a pack: one reference, and a CUDA fast path that must equal it.

Shape legend: T tokens of the pack, S sequences, H heads, C channels per head.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(kw_only=True, slots=True)
class Pack:
    """Where each sequence of a pack starts; made once per forward, used by every block."""

    lengths: list[int]
    offsets_S1: Tensor
    """(S + 1,) int32 on the tokens' device."""

    @classmethod
    def of(cls, lengths: list[int], device: torch.device) -> Pack:
        """From the number of tokens of each sequence."""
        offsets = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        offsets[1:] = torch.tensor(lengths, dtype=torch.int32).cumsum(0)
        return cls(lengths=lengths, offsets_S1=offsets.to(device))

    def part(self, sequences: list[int]) -> tuple[Pack, Tensor]:
        """The pack of some of the sequences, ascending, and the rows (n,) of this pack that they are."""
        device, starts = self.offsets_S1.device, [0, *accumulate(self.lengths)]
        rows = torch.cat([torch.arange(starts[s], starts[s + 1]) for s in sequences])
        return Pack.of([self.lengths[s] for s in sequences], device), rows.to(device)


def packed_attention(q_THC: Tensor, k_THC: Tensor, v_THC: Tensor, pack: Pack) -> Tensor:
    """Softmax attention of each sequence with itself, (T, H, C); scale 1/√C. Takes the fast path where there is one."""
    if q_THC.is_cuda and q_THC.dtype in (torch.bfloat16, torch.float16):
        return varlen_attention(q_THC, k_THC, v_THC, pack)
    return reference_attention(q_THC, k_THC, v_THC, pack)


def reference_attention(q_THC: Tensor, k_THC: Tensor, v_THC: Tensor, pack: Pack) -> Tensor:
    """One scaled-dot-product attention per sequence, exact on every device.

    On a CPU this beats a padded batch (no masked work, and the flash kernel needs no mask). Where a gradient will be
    asked for, it computes in float32 there: the CPU's bf16 flash backward takes four times as long (torch 2.13: 200
    against 48 ms for 9,000 tokens).
    """
    dtype = v_THC.dtype
    inner = torch.float32 if torch.is_grad_enabled() and not v_THC.is_cuda and dtype is torch.bfloat16 else dtype
    q_THC, k_THC, v_THC = q_THC.to(inner), k_THC.to(inner), v_THC.to(inner)
    if len(pack.lengths) == 1:  # nothing to take apart, nor gradients of the parts to put together
        return _attention(q_THC, k_THC, v_THC).to(dtype)
    parts = [_attention(*qkv) for qkv in zip(*(x.split(pack.lengths) for x in (q_THC, k_THC, v_THC)), strict=True)]
    # An empty pack still ties its weights to the loss: every rank reduces the same gradients.
    return torch.cat(parts).to(dtype) if parts else (q_THC + k_THC + v_THC).to(dtype)


def cross_attention(q_QHC: Tensor, k_THC: Tensor, v_THC: Tensor, queries: Pack, keys: Pack) -> Tensor:
    """Softmax attention of the queries of each sequence to the keys of the same sequence, (Q, H, C).

    Sequences may lack queries; one without keys has none either.
    """
    if q_QHC.is_cuda and q_QHC.dtype in (torch.bfloat16, torch.float16):
        from torch.nn.attention.varlen import varlen_attn

        longest = max(queries.lengths, default=0), max(keys.lengths, default=0)
        out = varlen_attn(q_QHC, k_THC, v_THC, queries.offsets_S1, keys.offsets_S1, *longest)
        assert isinstance(out, Tensor)
        return out
    parts = [
        _attention(q, k, v)
        for q, k, v in zip(
            q_QHC.split(queries.lengths), k_THC.split(keys.lengths), v_THC.split(keys.lengths), strict=True
        )
        if len(q)
    ]
    # Without any query the weights still belong to the loss: every rank reduces the same gradients.
    return torch.cat(parts) if parts else q_QHC + (k_THC.sum() + v_THC.sum()) * 0


def _attention(q_THC: Tensor, k_THC: Tensor, v_THC: Tensor) -> Tensor:
    """Of one sequence."""
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q_THC, k_THC, v_THC))
    out = F.scaled_dot_product_attention(q, k, v)
    return out.squeeze(0).transpose(0, 1)


def varlen_attention(q_THC: Tensor, k_THC: Tensor, v_THC: Tensor, pack: Pack) -> Tensor:
    """The same through ``torch.nn.attention.varlen`` (CUDA, half precision only)."""
    from torch.nn.attention.varlen import varlen_attn

    longest = max(pack.lengths, default=0)
    out = varlen_attn(q_THC, k_THC, v_THC, pack.offsets_S1, pack.offsets_S1, longest, longest)
    assert isinstance(out, Tensor)
    return out
