from __future__ import annotations

import pytest
import torch

from fm.models.attention import Pack, packed_attention, reference_attention, varlen_attention

LENGTHS = [5, 1, 9]


def _qkv(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(sum(LENGTHS), 2, 8, generator=g, dtype=torch.float64).to(dtype) for _ in range(3))
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def _by_definition(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Loop form in float64: out[i] = Σ_j softmax_j(q[i]·k[j] / √C) v[j], j in the sequence of i."""
    q, k, v = q.double(), k.double(), v.double()
    out, start = [], 0
    for n in LENGTHS:
        for i in range(start, start + n):
            heads = []
            for h in range(q.shape[1]):
                weights = torch.stack([q[i, h] @ k[j, h] / 8**0.5 for j in range(start, start + n)]).softmax(0)
                heads.append(sum(w * v[start + j, h] for j, w in enumerate(weights)))
            out.append(torch.stack(heads))
        start += n
    return torch.stack(out)


def test_reference_equals_the_definition_in_value_and_gradient() -> None:
    q, k, v = _qkv()
    got = reference_attention(q, k, v, Pack.of(LENGTHS, torch.device("cpu")))
    want = _by_definition(q, k, v)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)
    weight = torch.randn_like(got)
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), (q, k, v)),
        torch.autograd.grad((want * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_bf16_on_cpu_keeps_its_dtype_and_stays_within_bf16_rounding() -> None:
    q, k, v = _qkv(torch.bfloat16)
    got = packed_attention(q, k, v, Pack.of(LENGTHS, torch.device("cpu")))
    assert got.dtype is torch.bfloat16
    torch.testing.assert_close(got.double(), _by_definition(q, k, v), rtol=2**-8, atol=2**-8)


def test_a_pack_without_sequences_gives_no_tokens() -> None:
    empty = torch.zeros(0, 2, 8)
    assert packed_attention(empty, empty, empty, Pack.of([], torch.device("cpu"))).shape == (0, 2, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the varlen kernel has no CPU form")
def test_the_cuda_path_equals_the_reference() -> None:
    device = torch.device("cuda")
    lengths = [130, 7, 64]
    pack = Pack.of(lengths, device)
    q, k, v = (torch.randn(sum(lengths), 4, 64, device=device, dtype=torch.bfloat16).requires_grad_() for _ in "qkv")
    fast, slow = varlen_attention(q, k, v, pack), reference_attention(q, k, v, pack)
    torch.testing.assert_close(fast, slow, rtol=2e-2, atol=2e-2)
    weight = torch.randn_like(fast)
    for a, b in zip(
        torch.autograd.grad((fast * weight).sum(), (q, k, v)),
        torch.autograd.grad((slow * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=5e-2, atol=5e-2)
