"""KoLeo: spread features by pushing each away from its nearest neighbour (Sablayrolles et al., arXiv 1806.03198)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def koleo(x_SD: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Mean over rows of −log of the distance to the nearest other row, after scaling rows to unit length; scalar.

    Loop form: ``mean_s −log(min_{t ≠ s} ‖x[s] − x[t]‖ + epsilon)``. Fewer than two rows give 0: it breaks at batch 1
    (dinov2 issue 492). Give it the rows of all ranks, so that neighbours are sought in the whole batch.
    """
    if x_SD.shape[0] < 2:
        return x_SD.float().sum() * 0
    unit_SD = F.normalize(x_SD.float(), dim=-1)
    with torch.no_grad():
        cosine_SS = unit_SD @ unit_SD.T
        nearest_S = cosine_SS.fill_diagonal_(-2).argmax(1)
    distance_S = (unit_SD - unit_SD[nearest_S]).square().sum(1).clamp(min=1e-12).sqrt()
    return -(distance_S + epsilon).log().mean()
