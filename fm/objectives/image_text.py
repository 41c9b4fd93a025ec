"""Image–text contrast: CLIP's softmax and SigLIP's sigmoid loss, with false negatives taken out.

Shape legend: B studies of all ranks, E embedding channels. Rows whose study or report is missing are in no term.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint


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
    return _soft_sum(logits_BB, positive_BB, candidate_BB) / positive_BB.any(1).sum().clamp(min=1)


def _soft_sum(logits_NB: Tensor, positive_NB: Tensor, candidate_NB: Tensor) -> Tensor:
    lowest = torch.finfo(logits_NB.dtype).min
    log_p_NB = logits_NB.masked_fill(~candidate_NB, lowest).log_softmax(1)
    target_NB = positive_NB.to(logits_NB.dtype)
    loss_N = -(log_p_NB.masked_fill(~positive_NB, 0) * target_NB).sum(1) / target_NB.sum(1).clamp(min=1)
    return loss_N.sum()


@dataclass(kw_only=True, slots=True)
class Pairs:
    """Which images and texts belong together, told by vectors: a batch of any size needs no (B, B) mask at once."""

    identity_B: Tensor
    patient_B: Tensor
    present_B: Tensor
    mask_same_patient: bool

    def rows(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Rows ``start:stop`` of two symmetric (B, B) masks.

        Positive pairs are image and text of one study, or word for word the same report. Candidates may enter the
        loss, as positive or as negative: another study of the same patient is neither, its report says much the same.
        """
        index_N = torch.arange(start, min(stop, len(self.present_B)), device=self.present_B.device)
        usable_NB = self.present_B[index_N].unsqueeze(1) & self.present_B.unsqueeze(0)
        own_NB = index_N.unsqueeze(1) == torch.arange(len(self.present_B), device=index_N.device).unsqueeze(0)
        positive_NB = ((self.identity_B[index_N].unsqueeze(1) == self.identity_B.unsqueeze(0)) | own_NB) & usable_NB
        if not self.mask_same_patient:
            return positive_NB, usable_NB
        other_NB = self.patient_B[index_N].unsqueeze(1) != self.patient_B.unsqueeze(0)
        return positive_NB, usable_NB & (positive_NB | other_NB)


def clip_loss_by_rows(image_BE: Tensor, text_BE: Tensor, scale: Tensor, pairs: Pairs, chunk: int) -> Tensor:
    """:func:`clip_loss` with memory linear in B: `chunk` rows of logits at a time, computed again for the gradient."""

    def part(anchor_BE: Tensor, other_BE: Tensor, scale: Tensor, start: int) -> Tensor:
        positive_NB, candidate_NB = pairs.rows(start, start + chunk)
        logits_NB = scale * (anchor_BE[start : start + chunk].float() @ other_BE.float().T)
        return _soft_sum(logits_NB, positive_NB, candidate_NB)

    total = torch.zeros((), device=image_BE.device)
    for anchor_BE, other_BE in ((image_BE, text_BE), (text_BE, image_BE)):
        for start in range(0, len(anchor_BE), chunk):
            total = total + _again(part, anchor_BE, other_BE, scale, start)
    # A row that is present is its own positive.
    return total / (2 * pairs.present_B.sum().clamp(min=1))


def siglip_loss_by_rows(
    image_BE: Tensor, text_BE: Tensor, scale: Tensor, bias: Tensor, pairs: Pairs, chunk: int
) -> Tensor:
    """:func:`siglip_loss` with memory linear in B, as :func:`clip_loss_by_rows`."""

    def part(image_BE: Tensor, text_BE: Tensor, scale: Tensor, bias: Tensor, start: int) -> Tensor:
        positive_NB, candidate_NB = pairs.rows(start, start + chunk)
        logits_NB = scale * (image_BE[start : start + chunk].float() @ text_BE.float().T) + bias
        sign_NB = positive_NB.to(logits_NB.dtype) * 2 - 1
        return (-F.logsigmoid(sign_NB * logits_NB) * candidate_NB).sum()

    total = torch.zeros((), device=image_BE.device)
    for start in range(0, len(image_BE), chunk):
        total = total + _again(part, image_BE, text_BE, scale, bias, start)
    return total / pairs.present_B.sum().clamp(min=1)


def retrieved_share(image_BE: Tensor, text_BE: Tensor, pairs: Pairs, chunk: int) -> Tensor:
    """Share of the present images whose nearest candidate text is a positive; scalar, no gradient."""
    hits = torch.zeros((), device=image_BE.device)
    with torch.no_grad():
        for start in range(0, len(image_BE), chunk):
            positive_NB, candidate_NB = pairs.rows(start, start + chunk)
            cosine_NB = (image_BE[start : start + chunk] @ text_BE.T).masked_fill(~candidate_NB, -2)
            hits += positive_NB.gather(1, cosine_NB.argmax(1, keepdim=True)).sum()
    return hits / pairs.present_B.sum().clamp(min=1)


def _again(part: object, *arguments: object) -> Tensor:
    """A part of a loss whose intermediates are not kept for the backward pass."""
    result: Tensor = checkpoint(part, *arguments, use_reentrant=False, preserve_rng_state=False)
    return result
