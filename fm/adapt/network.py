"""What is trained: an encoder and a linear head over the features of a study."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fm.batch import PackedTokens, TextBatch
from fm.config.task import Mode
from fm.models.model import FmModel
from fm.models.pool import mean_max
from fm.objectives.student import StudentModule, StudentOutput

VIEW = "global_a"
"""The view that the head sees."""
_BLOCK = re.compile(r"fm\.image\.blocks\.(\d+)\.")
_ABOVE = ("fm.image.norm.", "fm.pool.", "head.")


class TaskHead(nn.Module):
    """A linear map over normalised study features, which starts by answering zero."""

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) features to (B, K) outputs, float32."""
        out: Tensor = self.linear(F.layer_norm(x_BF, x_BF.shape[1:])).float()
        return out


class AdaptedNetwork(StudentModule):
    """Encoder and head. Its outputs are the logits of its view, one row per study."""

    def __init__(self, fm: FmModel, outputs: int, mode: Mode) -> None:
        nn.Module.__init__(self)
        self.fm = fm
        self.phrases = None
        self.head = TaskHead(4 * fm.config.dim, outputs)  # type: ignore[assignment]  # another kind of head
        self.frozen = mode is Mode.frozen
        fm.requires_grad_(False)
        if not self.frozen:
            fm.image.requires_grad_(True)
            fm.pool.requires_grad_(True)

    def train(self, mode: bool = True) -> AdaptedNetwork:
        """A frozen encoder drops no paths."""
        super().train(mode)
        if self.frozen:
            self.fm.train(False)
        return self

    def forward(
        self, views: dict[str, PackedTokens], studies: int, align: str | None = None, text: TextBatch | None = None
    ) -> StudentOutput:
        """Outputs for `studies` studies, holes included; `align` and `text` are not used."""
        return StudentOutput(
            logits={name: self.head(self._features(pack, studies)) for name, pack in views.items()},
            class_tokens={},
            image_BE=None,
            text_BE=None,
            scale=None,
            bias=None,
        )

    def _features(self, pack: PackedTokens, studies: int) -> Tensor:
        """(B, 4·D), as :class:`fm.models.encoder.StudyFeatures`."""
        found = self.fm.image(pack)
        study_T = pack.study_S.repeat_interleave(pack.offsets_S1.diff())
        class_BD, _ = mean_max(found.class_SD, pack.study_S, studies)
        pooled = self.fm.pool_studies(found.stream_class_SD, found.stream_tokens_TD, pack, studies)
        return torch.cat([class_BD, *mean_max(found.tokens_TD, study_T, studies), pooled], 1)

    def rates(self, decay: float) -> dict[str, float]:
        """Factor of every parameter's learning rate: 1 from the last norm up, and `decay` less for each layer below."""
        depth = len(self.fm.image.blocks)
        found = {}
        for name, _ in self.named_parameters():
            block = _BLOCK.match(name)
            below = depth - int(block[1]) if block else 0 if name.startswith(_ABOVE) else depth + 1
            found[name] = decay**below
        return found
