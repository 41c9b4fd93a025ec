"""The losses of tasks over studies: means over the studies of the global batch that have the label."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fm.adapt.network import VIEW
from fm.adapt.targets import Scheme
from fm.batch import StudyBatch


class TaskObjective:
    """Cross-entropy weighted by class, or the squared error of the standardised value. Holds no parameters."""

    def __init__(self, scheme: Scheme, targets: Mapping[str, float]) -> None:
        """Take the scheme and the target of each study, by key."""
        self._scheme = scheme
        self._targets = targets

    def __call__(
        self, student: Any, teacher: Any, batch: StudyBatch, gather: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss, whose mean over ranks is that of the global batch, and report; the teacher has nothing to say."""
        out_BK = student({VIEW: batch.views[VIEW]}, batch.size).logits[VIEW]
        target_B = torch.tensor([self._targets[key] for key in batch.keys], device=out_BK.device)
        present_B = batch.weight_B.to(out_BK.device)
        if self._scheme.classes:
            target_B = target_B.long()
            weight_B = present_B * torch.tensor(self._scheme.weights, device=out_BK.device)[target_B]
            loss_B = F.cross_entropy(out_BK, target_B, reduction="none")
            report = {"accuracy": (out_BK.argmax(1) == target_B).float()}
        else:
            weight_B = present_B
            error_B = out_BK[:, 0] - target_B
            loss_B = error_B.square()
            report = {"absolute_error": error_B.abs() * self._scheme.scale}
        totals_R = gather(weight_B.sum().reshape(1))
        loss = (loss_B * weight_B).sum() * len(totals_R) / totals_R.sum().clamp(min=1e-6)
        counted = present_B.sum().clamp(min=1)
        return loss, {name: ((value * present_B).sum() / counted).detach() for name, value in report.items()}
