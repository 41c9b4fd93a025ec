"""Self-distillation beside image–text contrast: one forward of student and teacher, the losses, and what to report."""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fm.batch import StudyBatch
from fm.config.objective import JointConfig, TextLoss
from fm.objectives.gathering import Gather, gather_rows, local_gather
from fm.objectives.image_text import candidates, clip_loss, positives, siglip_loss
from fm.objectives.koleo import koleo
from fm.objectives.self_distillation import cross_entropy, teacher_targets, teacher_temperature, top1_share
from fm.objectives.student import StudentOutput


class JointObjective(nn.Module):
    """``loss = w₁ · self-distillation + w₂ · KoLeo + w₃ · image–text + w₄ · phrases``.

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
        student_out: StudentOutput = student(
            {name: batch.views[name] for name in names}, batch.size, align, batch.text if align else None
        )
        # Logits enter with weight zero: every parameter has a gradient on every rank, whatever is missing.
        loss = torch.stack([x.sum() for x in student_out.logits.values()]).sum() * 0
        report: dict[str, Tensor] = {}
        if config.self_distillation_weight > 0:
            part = self._self_distillation(student_out, teacher, batch, gather, report)
            loss = loss + config.self_distillation_weight * part
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

    def _self_distillation(
        self,
        student_out: StudentOutput,
        teacher: nn.Module,
        batch: StudyBatch,
        gather: Gather,
        report: dict[str, Tensor],
    ) -> Tensor:
        config = self.config
        views = {name: view for name, view in batch.views.items() if name.startswith("global")}
        # The teacher's weights stay float32; beside a half-precision student its arithmetic need not.
        own = next(iter(student_out.class_tokens.values())).dtype
        with torch.no_grad(), torch.autocast(batch.weight_B.device.type, own, enabled=own is torch.bfloat16):
            teacher_out: StudentOutput = teacher(views, batch.size)
        temperature = teacher_temperature(config, batch.step)
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
        positive_BB = positives(gather(batch.text.identity_B), present_B)
        candidate_BB = candidates(positive_BB, gather(batch.patient_B), present_B, config.mask_same_patient)
        if config.image_text is TextLoss.clip:
            loss = clip_loss(image_BE, text_BE, student_out.scale, positive_BB, candidate_BB) + 0 * student_out.bias
        else:
            loss = siglip_loss(image_BE, text_BE, student_out.scale, student_out.bias, positive_BB, candidate_BB)
        with torch.no_grad():
            best_B = (image_BE @ text_BE.T).masked_fill(~candidate_BB, -2).argmax(1)
            hit_B = positive_BB.gather(1, best_B.unsqueeze(1)).squeeze(1)
        report["image_text"] = loss.detach()
        report["image_text_top1"] = hit_B.float().sum() / present_B.sum().clamp(min=1)
        report["contrast_scale"] = student_out.scale.detach()
        return loss
