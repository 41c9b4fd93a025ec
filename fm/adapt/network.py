"""What is trained: an encoder and a linear head over the features of a study."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from fm.batch import PackedTokens, TextBatch
from fm.config.task import Mode
from fm.models.model import FmModel
from fm.models.pool import mean_max
from fm.objectives.student import Patches, StudentModule, StudentOutput
from fm.probes.types import Floats

VIEW = "global_a"
"""The view that the head sees."""
_BLOCK = re.compile(r"fm\.image\.blocks\.(\d+)\.")
_ABOVE = ("fm.image.norm.", "fm.pool.", "head.")


class Standard(nn.Module):
    """Features minus their mean, over their standard deviation; both stay what they are at the start.

    Without it a linear map learns slowly: what all studies have in common is far larger than what tells them apart.
    Frozen parameters of a leaf module: the average holds them too, and ZeRO-3 gathers them.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(dim), requires_grad=False)
        self.spread = nn.Parameter(torch.ones(dim), requires_grad=False)

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) to (B, F), float32."""
        return (x_BF.float() - self.mean.float()) / self.spread.float()


class TaskHead(nn.Module):
    """A linear map over standardised study features, which starts by answering zero."""

    def __init__(self, dim: int, outputs: int) -> None:
        super().__init__()
        self.standard = Standard(dim)
        self.linear = nn.Linear(dim, outputs)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @torch.no_grad()
    def standardise(self, mean_F: Floats, spread_F: Floats) -> None:
        """Take the moments of the features."""
        self.standard.mean.copy_(torch.from_numpy(mean_F))
        self.standard.spread.copy_(torch.from_numpy(spread_F))

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, F) features to (B, K) outputs, float32."""
        out: Tensor = self.linear(self.standard(x_BF).to(x_BF.dtype)).float()
        return out


class AdaptedNetwork(StudentModule):
    """Encoder and head. Its outputs are the logits of its view, one row per study."""

    def __init__(self, fm: FmModel, outputs: int, mode: Mode) -> None:
        super().__init__(fm)
        self.head = TaskHead(4 * fm.config.dim, outputs)
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
        self,
        views: dict[str, PackedTokens],
        studies: int,
        align: str | None = None,
        text: TextBatch | None = None,
        patches: Patches | None = None,
    ) -> StudentOutput:
        """Outputs for `studies` studies, holes included; `align`, `text` and `patches` are not used."""
        return StudentOutput(
            logits={name: self.head(self.features(pack, studies)) for name, pack in views.items()},
            class_tokens={},
            image_BE=None,
            text_BE=None,
            scale=None,
            bias=None,
        )

    def features(self, pack: PackedTokens, studies: int) -> Tensor:
        """(B, 4·D), as :class:`fm.models.encoder.StudyFeatures`."""
        found = self.fm.image(pack)
        study_T = pack.study_S.repeat_interleave(pack.offsets_S1.diff())
        class_BD, _ = mean_max(found.class_SD, pack.study_S, studies)
        pooled = self.fm.pool_studies(found.stream_class_SD, found.stream_tokens_TD, pack, studies)
        return torch.cat([class_BD, *mean_max(found.tokens_TD, study_T, studies), pooled], 1)

    def standardise(self, mean_F: Floats, spread_F: Floats) -> None:
        """Take the moments of :meth:`features`."""
        self.head.standardise(mean_F, spread_F)

    def rates(self, decay: float) -> dict[str, float]:
        """Factor of every parameter's learning rate: 1 from the last norm up, and `decay` less for each layer below."""
        depth = len(self.fm.image.blocks)
        found = {}
        for name, _ in self.named_parameters():
            block = _BLOCK.match(name)
            below = depth - int(block[1]) if block else 0 if name.startswith(_ABOVE) else depth + 1
            found[name] = decay**below
        return found
