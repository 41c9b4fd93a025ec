"""Pooling: tokens of any number of series to one vector per study."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GatedPool(nn.Module):
    """Attention-weighted mean of the tokens of each segment (a series or a study), several heads, plus their peaks.

    Gated attention for multiple-instance learning (Ilse et al., arXiv 1802.04712): the score of a token is
    w · (tanh(V x) ∘ sigmoid(U x)). The peak is the maximum over tokens of each channel of a linear map: a finding that
    one token among hundreds shows has a gradient from the first step, which a mean gives it only once the scores have
    found it. A missing series is simply absent; an empty segment gives zeros.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.hidden = nn.Linear(dim, dim)
        self.gate = nn.Linear(dim, dim)
        self.score = nn.Linear(dim, heads)
        self.value = nn.Linear(dim, dim)
        self.peak = nn.Linear(dim, dim)

    def forward(self, tokens_ND: Tensor, segment_N: Tensor, segments: int) -> Tensor:
        """(N, D) tokens and (N,) segment rows to (segments, D)."""
        score_NH = self.score(torch.tanh(self.hidden(tokens_ND)) * torch.sigmoid(self.gate(tokens_ND))).float()
        index_NH = segment_N.unsqueeze(1).expand_as(score_NH)
        top = score_NH.new_full((segments, self.heads), float("-inf"))
        top = top.scatter_reduce(0, index_NH, score_NH.detach(), "amax")
        weight_NH = (score_NH - top.index_select(0, segment_N)).exp()
        total = weight_NH.new_zeros(segments, self.heads).index_add(0, segment_N, weight_NH)
        weight_NH = weight_NH / total.index_select(0, segment_N)
        value_NHC = self.value(tokens_ND).float().unflatten(1, (self.heads, -1))
        weighted = (value_NHC * weight_NH.unsqueeze(2)).flatten(1)
        pooled = weighted.new_zeros(segments, weighted.shape[1]).index_add(0, segment_N, weighted)
        peak_ND = self.peak(tokens_ND).float()
        row_ND = segment_N.unsqueeze(1).expand_as(peak_ND)
        pooled = pooled + torch.zeros_like(pooled).scatter_reduce(0, row_ND, peak_ND, "amax", include_self=False)
        result: Tensor = pooled.to(tokens_ND.dtype)
        return result


def mean_max(x_ND: Tensor, segment_N: Tensor, segments: int) -> tuple[Tensor, Tensor]:
    """(segments, D) mean and maximum of the rows of each segment; zeros for an empty one. The mean sums in float32."""
    total = x_ND.new_zeros(segments, x_ND.shape[1], dtype=torch.float32).index_add(0, segment_N, x_ND.float())
    count = total.new_zeros(segments).index_add(0, segment_N, torch.ones_like(segment_N, dtype=torch.float32))
    index_ND = segment_N.unsqueeze(1).expand_as(x_ND)
    top = x_ND.new_zeros(total.shape).scatter_reduce(0, index_ND, x_ND, "amax", include_self=False)
    return (total / count.clamp(min=1).unsqueeze(1)).to(x_ND.dtype), top
