"""iBOT: the student's prototype distribution of a patch that it did not see predicts the teacher's, which saw it.

Shape legend: S crops of one rank, M hidden patches of them, K prototypes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fm.objectives.self_distillation import cross_entropy


def masked_patch_losses(target_MK: Tensor, student_cosine_MK: Tensor, count_S: Tensor, temperature: float) -> Tensor:
    """(S,) loss of each crop, the mean over its hidden patches; 0 for a crop without any (iBOT, 2111.07832; DINOv2).

    Loop form: ``loss[s] = mean over hidden patches m of s of −Σ_k target[m][k] · log softmax(student[m] / T)[k]``.
    A large crop counts as much as a small one. The patches of a crop lie together, in the order of the crops.
    """
    each_M = cross_entropy(target_MK, student_cosine_MK, temperature)
    crop_M = torch.arange(len(count_S), device=count_S.device).repeat_interleave(count_S, output_size=len(each_M))
    return each_M.new_zeros(len(count_S)).index_add(0, crop_M, each_M) / count_S.clamp(min=1)
