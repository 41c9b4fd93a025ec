"""Masked autoencoding (MAE, He et al., arXiv 2111.06377) on packed crops: hidden patches are never encoded.

Shape legend: M hidden patches, P voxels per patch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fm.batch import PackedTokens, StudyBatch, TextBatch, concat
from fm.config.objective import MaeConfig
from fm.models.model import FmModel
from fm.objectives.gathering import Gather, local_gather, mean_over_ranks
from fm.objectives.masks import draw_masks
from fm.objectives.predictor import Predictor
from fm.objectives.student import Patches, StudentModule, StudentOutput, masked_views, predict_hidden


class MaeStudent(StudentModule):
    """Encoder and decoder."""

    predictor: Predictor

    def __init__(self, fm: FmModel, config: MaeConfig) -> None:
        super().__init__(fm)
        self.predictor = Predictor(config.decoder, fm.image.config, math.prod(fm.config.patch_voxels))

    def forward(
        self,
        views: dict[str, PackedTokens],
        studies: int,
        align: str | None = None,
        text: TextBatch | None = None,
        patches: Patches | None = None,
    ) -> StudentOutput:
        """Encode all views in one pack; with `patches`, draw the hidden ones' voxels.

        Args:
            views: the views to encode.
            studies: B, holes included.
            align: the view whose study embedding is wanted beside the text's, or None.
            text: the reports; needed where `align` is given.
            patches: what is hidden.
        """
        shown = masked_views(views, patches)
        features = self.fm.image(concat(list(shown.values())))
        classes = features.class_SD.split([len(view.lengths) for view in shown.values()])
        output = StudentOutput(logits={}, class_tokens=dict(zip(shown, classes, strict=True)))
        if patches is not None:
            output.patches = predict_hidden(self.predictor, features, views, shown, patches.masks)
        if align is not None:
            self.align(output, features, shown, studies, align, text)
        return output


def patch_targets(patches_MP: Tensor, normalise: bool, epsilon: float = 1e-6) -> Tensor:
    """(M, P) float32 voxels to draw; with `normalise` each patch less its mean, over √(its variance + epsilon).

    The variance is the unbiased one, as in MAE's own code.
    """
    patches_MP = patches_MP.float()
    if not normalise:
        return patches_MP
    centred_MP = patches_MP - patches_MP.mean(1, keepdim=True)
    variance_M1 = centred_MP.square().sum(1, keepdim=True) / (patches_MP.shape[1] - 1)
    return centred_MP / (variance_M1 + epsilon).sqrt()


def reconstruction_losses(drawn_MP: Tensor, target_MP: Tensor) -> Tensor:
    """(M,) squared error of each hidden patch, the mean over its voxels."""
    return (drawn_MP.float() - target_MP).square().mean(1)


class MaeObjective(nn.Module):
    """The mean over all hidden patches of the squared error of their voxels; all views are encoded, none by a teacher.

    The teacher's average goes on beside it, for probe and export.
    """

    def __init__(self, config: MaeConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, student: nn.Module, teacher: nn.Module, batch: StudyBatch, gather: Gather = local_gather
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and report of one rank's share of a batch; never logs.

        Args:
            student: a :class:`MaeStudent`, or what wraps one.
            teacher: its EMA copy, which is not asked.
            batch: the views, each of which is masked.
            gather: rows of all ranks.

        Returns:
            A float32 scalar with gradient, and detached scalars by name.
        """
        masks = draw_masks(batch, list(batch.views), self.config.masks)
        out: StudentOutput = student(batch.views, batch.size, None, None, Patches(masks=masks, hide=True))
        each_M = torch.cat(
            [
                reconstruction_losses(
                    out.patches[name], patch_targets(view.patches_TP[masks[name]], self.config.normalise_target)
                )
                for name, view in batch.views.items()
            ]
        )
        loss = mean_over_ranks(each_M, gather)
        return loss, {"reconstruction": loss.detach(), "loss": loss.detach()}
