"""Image–text contrast: CLIP's softmax and SigLIP's sigmoid loss, with false negatives taken out.

Shape legend: B studies of all ranks, E embedding channels. Rows whose study or report is missing are in no term.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def positives(identity_B: Tensor, present_B: Tensor) -> Tensor:
    """(B, B) bool: image i and text j belong together: the same study, or word for word the same report."""
    same_BB = (identity_B.unsqueeze(1) == identity_B.unsqueeze(0)) | torch.eye(
        len(identity_B), dtype=torch.bool, device=identity_B.device
    )
    return same_BB & present_B.unsqueeze(1) & present_B.unsqueeze(0)


def candidates(positive_BB: Tensor, patient_B: Tensor, present_B: Tensor, mask_same_patient: bool) -> Tensor:
    """(B, B) bool: pairs that may enter the loss, as positive or as negative.

    Another study of the same patient is neither: its report says much the same.
    """
    usable_BB = present_B.unsqueeze(1) & present_B.unsqueeze(0)
    if not mask_same_patient:
        return usable_BB
    return usable_BB & (positive_BB | (patient_B.unsqueeze(1) != patient_B.unsqueeze(0)))


def clip_loss(image_BE: Tensor, text_BE: Tensor, scale: Tensor, positive_BB: Tensor, candidate_BB: Tensor) -> Tensor:
    """Symmetric softmax loss (CLIP, arXiv 2103.00020); several positives share the target evenly; scalar.

    Loop form, images to texts, for each row i with a positive:
    ``−mean over positives j of log( exp(scale · image[i]·text[j]) / Σ_{candidates c} exp(scale · image[i]·text[c]) )``,
    averaged over rows; the same for texts to images; the mean of both. 0 where no row has a positive.
    """
    logits_BB = scale * (image_BE.float() @ text_BE.float().T)
    forward = _soft_rows(logits_BB, positive_BB, candidate_BB)
    backward = _soft_rows(logits_BB.T, positive_BB.T, candidate_BB.T)
    return (forward + backward) / 2


def siglip_loss(
    image_BE: Tensor, text_BE: Tensor, scale: Tensor, bias: Tensor, positive_BB: Tensor, candidate_BB: Tensor
) -> Tensor:
    """Pairwise sigmoid loss (SigLIP, arXiv 2303.15343); scalar.

    Loop form: ``−Σ_{candidates i, j} log sigmoid(± (scale · image[i]·text[j] + bias)) / rows``, + for positives, − for
    the rest; `rows` counts the images that have a positive.
    """
    logits_BB = scale * (image_BE.float() @ text_BE.float().T) + bias
    sign_BB = positive_BB.to(logits_BB.dtype) * 2 - 1
    loss_BB = -F.logsigmoid(sign_BB * logits_BB) * candidate_BB
    return loss_BB.sum() / positive_BB.any(1).sum().clamp(min=1)


def _soft_rows(logits_BB: Tensor, positive_BB: Tensor, candidate_BB: Tensor) -> Tensor:
    lowest = torch.finfo(logits_BB.dtype).min
    log_p_BB = logits_BB.masked_fill(~candidate_BB, lowest).log_softmax(1)
    target_BB = positive_BB.to(logits_BB.dtype)
    count_B = target_BB.sum(1)
    loss_B = -(log_p_BB.masked_fill(~positive_BB, 0) * target_BB).sum(1) / count_B.clamp(min=1)
    return loss_B.sum() / (count_B > 0).sum().clamp(min=1)
