"""Gram anchoring: how alike the patches of a crop are to one another stays as the teacher has it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def gram_distances(student_TD: Tensor, teacher_TD: Tensor, lengths: list[int]) -> Tensor:
    """(S,) mean squared difference of each crop's two matrices of patch cosines (DINOv3, arXiv 2508.10104).

    Loop form: ``loss[s] = mean over patches i, j of s of (student[i]·student[j] − teacher[i]·teacher[j])²``, rows
    scaled to unit length. 0 for a crop without patches.
    """
    own_TD, other_TD = F.normalize(student_TD.float(), dim=-1), F.normalize(teacher_TD.float(), dim=-1)
    each = [
        (a @ a.T - b @ b.T).square().sum() / max(len(a), 1) ** 2
        for a, b in zip(own_TD.split(lengths), other_TD.split(lengths), strict=True)
    ]
    return torch.stack(each) if each else own_TD.sum(1)
