"""DINO: the student's prototype distribution of one view predicts the teacher's of another view of the same series.

Shape legend: S series views of one rank, K prototypes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fm.config.objective import Centering, JointConfig


def sinkhorn_targets(
    cosine_SK: Tensor, temperature: float, iterations: int, gather: Callable[[Tensor], Tensor]
) -> Tensor:
    """(S, K) teacher targets by Sinkhorn–Knopp over the series of all ranks (SwAV, arXiv 2006.09882; DINOv2).

    Loop form, with ``q[s][k] = exp(cosine[s][k] / temperature)``: repeat { divide each column k by its sum over all s
    and by K; divide each row s by its sum }. Rows end as distributions, columns share the batch evenly. Only (1, K)
    sums travel between ranks.
    """
    logits = cosine_SK.float() / temperature
    # Unit cosines bound the logits by 1 / temperature, so one global shift keeps exp() in range on every rank alike.
    q_SK = (logits - 1 / temperature).exp()
    for _ in range(iterations):
        column_K = gather(q_SK.sum(0, keepdim=True)).sum(0)
        q_SK = q_SK / (column_K * q_SK.shape[1]).clamp(min=torch.finfo(q_SK.dtype).tiny)
        q_SK = q_SK / q_SK.sum(1, keepdim=True).clamp(min=torch.finfo(q_SK.dtype).tiny)
    return q_SK


def softmax_targets(cosine_SK: Tensor, temperature: float, gather: Callable[[Tensor], Tensor]) -> Tensor:
    """(S, K) teacher targets: softmax of the cosines less their mean over the series of all ranks (DINO, 2104.14294).

    The centre is the global batch's own mean, not a running one, so there is no state to checkpoint.
    """
    cosine_SK = cosine_SK.float()
    count = gather(cosine_SK.new_tensor([float(cosine_SK.shape[0])])).sum().clamp(min=1)
    centre_K = gather(cosine_SK.sum(0, keepdim=True)).sum(0) / count
    return ((cosine_SK - centre_K) / temperature).softmax(1)


def teacher_targets(
    cosine_SK: Tensor, centering: Centering, temperature: float, iterations: int, gather: Callable[[Tensor], Tensor]
) -> Tensor:
    """Targets by the configured centering, without gradient."""
    with torch.no_grad():
        if centering is Centering.sinkhorn:
            return sinkhorn_targets(cosine_SK, temperature, iterations, gather)
        return softmax_targets(cosine_SK, temperature, gather)


def teacher_temperature(config: JointConfig, step: int) -> float:
    """The teacher's temperature at step `step` (from 0): a straight line from the first to the lasting one."""
    steps = config.teacher_temperature_warmup_steps
    if step >= steps:
        return config.teacher_temperature
    first = config.first_teacher_temperature
    return first + (config.teacher_temperature - first) * step / steps


def top1_share(target_SK: Tensor, gather: Callable[[Tensor], Tensor]) -> Tensor:
    """Share of the series of all ranks whose largest target is the most common one; scalar, 1 is collapse.

    0 where no rank has a series. Only (1, K) counts travel between ranks.
    """
    local_K = torch.bincount(target_SK.argmax(1), minlength=target_SK.shape[1]).float()
    count_K = gather(local_K.unsqueeze(0)).sum(0)
    return count_K.max() / count_K.sum().clamp(min=1)


def cross_entropy(target_SK: Tensor, student_cosine_SK: Tensor, temperature: float) -> Tensor:
    """(S,) cross-entropy of the student's softmax at `temperature` against the targets.

    Loop form: ``loss[s] = −Σ_k target[s][k] · log softmax(student[s] / temperature)[k]``.
    """
    log_p_SK = (student_cosine_SK.float() / temperature).log_softmax(1)
    return -(target_SK * log_p_SK).sum(1)
