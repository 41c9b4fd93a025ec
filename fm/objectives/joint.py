"""Self-distillation beside image–text contrast: one forward of student and teacher, the losses, and what to report."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fm.batch import StudyBatch
from fm.config.masking import HiddenFromStudent
from fm.config.objective import JointConfig, TextLoss
from fm.objectives.gathering import Gather, gather_rows, local_gather, mean_over_ranks
from fm.objectives.gram import gram_distances
from fm.objectives.image_text import (
    Pairs,
    clip_loss,
    clip_loss_by_rows,
    retrieved_share,
    siglip_loss,
    siglip_loss_by_rows,
)
from fm.objectives.koleo import koleo
from fm.objectives.masked_patches import masked_patch_losses
from fm.objectives.masks import draw_masks, masked_counts, visible
from fm.objectives.self_distillation import cross_entropy, teacher_targets, teacher_temperature, top1_share
from fm.objectives.student import Patches, StudentOutput


class JointObjective(nn.Module):
    """``loss = w₁ · class tokens + w₂ · masked patches + w₃ · Gram + w₄ · KoLeo + w₅ · image–text + w₆ · phrases``.

    Views named ``global_*`` are the teacher's; the student predicts each of them from every other view of the same
    series. The first global view the student sees, else its first view, is matched with the report.
    """

    def __init__(self, config: JointConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, student: nn.Module, teacher: nn.Module, batch: StudyBatch, gather: Gather = local_gather
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and report of one rank's share of a batch; never logs.

        Args:
            student: a :class:`fm.objectives.StudentModule`, or what wraps one.
            teacher: the EMA copy.
            batch: every view holds the same series in the same order.
            gather: rows of all ranks.

        Returns:
            A float32 scalar with gradient, and detached scalars by name.
        """
        config = self.config
        names = self._student_views(batch)
        align = names[0] if config.image_text_weight > 0 or config.phrase_weight > 0 else None
        patches = self._patches(batch)
        student_out: StudentOutput = student(
            {name: batch.views[name] for name in names}, batch.size, align, batch.text if align else None, patches
        )
        # Logits enter with weight zero: every parameter has a gradient on every rank, whatever is missing.
        logits = [*student_out.logits.values(), *student_out.patches.values()]
        loss = torch.stack([x.sum() for x in logits]).sum() * 0
        report: dict[str, Tensor] = {}
        if config.self_distillation_weight > 0 or patches is not None:
            teacher_out = self._ask_teacher(student_out, teacher, batch, patches)
        if config.self_distillation_weight > 0:
            part = self._self_distillation(student_out, teacher_out, batch.step, gather, report)
            loss = loss + config.self_distillation_weight * part
        if patches is not None and config.masked_patches.weight > 0:
            part = self._masked_patches(student_out, teacher_out, batch, patches, gather)
            report["masked_patches"] = part.detach()
            loss = loss + config.masked_patches.weight * part
        if patches is not None and config.gram_weight > 0:
            part = self._gram(student_out, teacher_out, batch, patches, gather)
            report["gram"] = part.detach()
            loss = loss + config.gram_weight * part
        if config.koleo_weight > 0:
            spread = torch.stack([koleo(gather_rows(x, gather)) for x in student_out.class_tokens.values()]).mean()
            report["koleo"] = spread.detach()
            loss = loss + config.koleo_weight * spread
        if config.image_text_weight > 0:
            part = self._image_text(student_out, batch, gather, report)
            loss = loss + config.image_text_weight * part
        if student_out.phrases_BK is not None:
            part = self._phrases(student_out.phrases_BK, batch, gather)
            report["phrases"] = part.detach()
            loss = loss + config.phrase_weight * part
        report["loss"] = loss.detach()
        return loss, report

    def _student_views(self, batch: StudyBatch) -> list[str]:
        names = [n for n in batch.views if self.config.student_sees_globals or not n.startswith("global")]
        names = names or list(batch.views)
        return sorted(names, key=lambda name: not name.startswith("global"))

    def _patches(self, batch: StudyBatch) -> Patches | None:
        """What is asked of the patches of the global views; None where no loss is about them."""
        masked, gram = self.config.masked_patches, self.config.gram_weight > 0
        names = [name for name in batch.views if name.startswith("global")]
        if masked.weight == 0 and not gram:
            return None
        if masked.weight == 0:
            masks = {name: torch.zeros_like(batch.views[name].position_T3[:, 0]).bool() for name in names}
        else:
            masks = draw_masks(batch, names, masked.masks)
        return Patches(masks=masks, hide=True, tokens=gram)

    @staticmethod
    def _ask_teacher(
        student_out: StudentOutput, teacher: nn.Module, batch: StudyBatch, patches: Patches | None
    ) -> StudentOutput:
        """The teacher's answer to the global views, from all of their patches."""
        views = {name: view for name, view in batch.views.items() if name.startswith("global")}
        whole = replace(patches, hide=False) if patches is not None else None
        # The teacher's weights stay float32; beside a half-precision student its arithmetic need not.
        own = next(iter(student_out.class_tokens.values())).dtype
        with torch.no_grad(), torch.autocast(batch.weight_B.device.type, own, enabled=own is torch.bfloat16):
            out: StudentOutput = teacher(views, batch.size, None, None, whole)
        return out

    def _self_distillation(
        self,
        student_out: StudentOutput,
        teacher_out: StudentOutput,
        step: int,
        gather: Gather,
        report: dict[str, Tensor],
    ) -> Tensor:
        config, temperature = self.config, teacher_temperature(self.config, step)
        targets = {
            name: teacher_targets(cosine, config.centering, temperature, config.sinkhorn_iterations, gather)
            for name, cosine in teacher_out.logits.items()
        }
        total = next(iter(student_out.logits.values())).new_zeros(())
        pairs = [(t, s) for t, s in product(targets, student_out.logits) if t != s]
        for target, predictor in pairs:
            entropies = cross_entropy(targets[target], student_out.logits[predictor], config.student_temperature)
            total = total + entropies.sum()
        # The mean over the series of all ranks, scaled so that the mean over ranks is the loss of the joined batch.
        counts = gather(total.new_tensor([float(max(len(pairs), 1) * next(iter(targets.values())).shape[0])]))
        loss = total * len(counts) / counts.sum().clamp(min=1)
        first = next(iter(targets.values()))
        report["self_distillation"] = loss.detach()
        report["target_entropy"] = (
            -(first * first.clamp(min=1e-12).log()).sum(1).mean() if len(first) else total.detach()
        )
        report["target_top1_share"] = top1_share(first, gather)
        report["prototypes_used"] = torch.tensor(float(first.argmax(1).unique().numel()), device=total.device)
        return loss

    def _masked_patches(
        self,
        student_out: StudentOutput,
        teacher_out: StudentOutput,
        batch: StudyBatch,
        patches: Patches,
        gather: Gather,
    ) -> Tensor:
        """The mean over the global crops of all ranks, masked or not, as DINOv2; targets are made over all patches."""
        config, names = self.config, list(patches.masks)
        targets_MK = teacher_targets(
            torch.cat([teacher_out.patches[name] for name in names]),
            config.centering,
            teacher_temperature(config, batch.step),
            config.sinkhorn_iterations,
            gather,
        )
        count_S = torch.cat([masked_counts(patches.masks[name], batch.views[name]) for name in names])
        student_MK = torch.cat([student_out.patches[name] for name in names])
        return mean_over_ranks(masked_patch_losses(targets_MK, student_MK, count_S, config.student_temperature), gather)

    def _gram(
        self,
        student_out: StudentOutput,
        teacher_out: StudentOutput,
        batch: StudyBatch,
        patches: Patches,
        gather: Gather,
    ) -> Tensor:
        """The mean over the global crops of all ranks, among the patches that the student encoded."""
        masked = self.config.masked_patches
        dropped = masked.weight > 0 and masked.student is HiddenFromStudent.dropped
        each = []
        for name, mask_T in patches.masks.items():
            target_TD = teacher_out.tokens[name][~mask_T] if dropped else teacher_out.tokens[name]
            view = visible(batch.views[name], mask_T) if dropped else batch.views[name]
            each.append(gram_distances(student_out.tokens[name], target_TD, view.lengths))
        return mean_over_ranks(torch.cat(each), gather)

    def _phrases(self, logits_BK: Tensor, batch: StudyBatch, gather: Gather) -> Tensor:
        """Binary cross-entropy, the mean over phrases and over the studies of all ranks with image and report."""
        usable_B = self._usable(batch)
        each_BK = F.binary_cross_entropy_with_logits(
            logits_BK, batch.text.phrases_BK.to(logits_BK.dtype), reduction="none"
        )
        total = (each_BK.mean(1) * usable_B).sum()
        # Scaled so that the mean over ranks is the loss of the joined batch.
        counts = gather(usable_B.sum().unsqueeze(0).to(total.dtype))
        return total * len(counts) / counts.sum().clamp(min=1)

    @staticmethod
    def _usable(batch: StudyBatch) -> Tensor:
        """(B,) bool: studies with at least one series and a report."""
        has_image_B = torch.zeros_like(batch.text.present_B)
        has_image_B[batch.views[next(iter(batch.views))].study_S] = True
        return batch.text.present_B & has_image_B & (batch.weight_B > 0)

    def _image_text(
        self, student_out: StudentOutput, batch: StudyBatch, gather: Gather, report: dict[str, Tensor]
    ) -> Tensor:
        config = self.config
        assert student_out.image_BE is not None and student_out.text_BE is not None
        assert student_out.scale is not None and student_out.bias is not None
        present_B = gather(self._usable(batch).long()) > 0
        image_BE, text_BE = gather(student_out.image_BE), gather(student_out.text_BE)
        pairs = Pairs(
            identity_B=gather(batch.text.identity_B),
            patient_B=gather(batch.patient_B),
            present_B=present_B,
            mask_same_patient=config.mask_same_patient,
        )
        rows, scale, bias = config.image_text_rows, student_out.scale, student_out.bias
        if config.image_text is TextLoss.clip:
            if len(present_B) > rows:
                loss = clip_loss_by_rows(image_BE, text_BE, scale, pairs, rows)
            else:
                loss = clip_loss(image_BE, text_BE, scale, *pairs.rows(0, rows))
            loss = loss + 0 * bias
        elif len(present_B) > rows:
            loss = siglip_loss_by_rows(image_BE, text_BE, scale, bias, pairs, rows)
        else:
            loss = siglip_loss(image_BE, text_BE, scale, bias, *pairs.rows(0, rows))
        report["image_text"] = loss.detach()
        report["image_text_top1"] = retrieved_share(image_BE, text_BE, pairs, rows)
        report["contrast_scale"] = student_out.scale.detach()
        return loss
