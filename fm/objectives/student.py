"""What is trained: the encoder and the heads of its losses. The teacher is a copy of the same module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fm.batch import PackedTokens, TextBatch, concat
from fm.config.objective import JointConfig
from fm.models.model import FmModel
from fm.models.names import load_former_name


@dataclass(kw_only=True)  # no slots: DeepSpeed's ZeRO-3 hooks look for tensors in vars() of what a module returns
class StudentOutput:
    """Everything that the losses need from one forward pass. S_v sequences of view v, K prototypes, B studies."""

    logits: dict[str, Tensor]
    """Cosines to the prototypes of each view's class tokens, (S_v, K) float32, not yet divided by a temperature."""
    class_tokens: dict[str, Tensor]
    """(S_v, D) class tokens."""
    image_BE: Tensor | None
    """(B, E) unit study embeddings of the aligned view."""
    text_BE: Tensor | None
    """(B, E) unit text embeddings."""
    scale: Tensor | None
    bias: Tensor | None
    """Inverse temperature and bias of the image–text logits."""
    phrases_BK: Tensor | None = None
    """(B, K) float32 logits of each phrase standing in the study's report."""


class Prototypes(nn.Module):
    """The directions that class tokens are compared with; a leaf module, so that ZeRO-3 gathers them."""

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count, dim))

    def forward(self) -> Tensor:
        """(K, D) unit rows, float32."""
        return F.normalize(self.weight.float(), dim=-1)


class PrototypeHead(nn.Module):
    """DINO head: a small MLP, a unit bottleneck, and cosines to unit prototypes.

    Both sides are normalised: plain linear prototypes never sharpen at small learning rates.
    """

    def __init__(self, dim: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.prototypes = Prototypes(prototypes, bottleneck)
        load_former_name(self, "prototypes", "prototypes.weight")
        self.up = nn.Linear(dim, hidden)
        self.mid = nn.Linear(hidden, hidden)
        self.down = nn.Linear(hidden, bottleneck)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Truncated normal of standard deviation 1/√fan-in; prototypes N(0, 1), which direction alone matters."""
        for linear in (self.up, self.mid, self.down):
            nn.init.trunc_normal_(linear.weight, std=linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)
        nn.init.normal_(self.prototypes.weight)

    def forward(self, x_SD: Tensor) -> Tensor:
        """(S, D) class tokens to (S, K) cosines, float32."""
        hidden = F.gelu(self.mid(F.gelu(self.up(x_SD))))
        bottleneck = F.normalize(self.down(hidden).float(), dim=-1)
        cosines: Tensor = bottleneck @ self.prototypes().T
        return cosines


class PhraseHead(nn.Module):
    """A linear map from study features to phrases, which starts by answering with each phrase's share."""

    def __init__(self, dim: int, shares: Sequence[float]) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, len(shares))
        nn.init.normal_(self.linear.weight, std=0.02)
        with torch.no_grad():
            self.linear.bias.copy_(torch.logit(torch.tensor(list(shares)), eps=1e-4))

    def forward(self, x_BD: Tensor) -> Tensor:
        """(B, D) to (B, K) logits, float32."""
        out: Tensor = self.linear(x_BD).float()
        return out


class StudentModule(nn.Module):
    """Encoder and heads in one module, so that one engine holds all that is trained.

    ``fm`` is the model that is exported.
    """

    def __init__(self, fm: FmModel, config: JointConfig, phrase_shares: Sequence[float] = ()) -> None:
        super().__init__()
        self.fm = fm
        self.phrases = PhraseHead(fm.config.dim, phrase_shares) if phrase_shares else None
        self.head = PrototypeHead(fm.config.dim, config.head_hidden_dim, config.head_bottleneck_dim, config.prototypes)

    def forward(
        self,
        views: dict[str, PackedTokens],
        studies: int,
        align: str | None = None,
        text: TextBatch | None = None,
    ) -> StudentOutput:
        """Encode all views in one pack.

        Args:
            views: the views to encode; their class tokens go to the prototype head.
            studies: B, holes included.
            align: the view whose study embedding is matched with the text, or None.
            text: the reports; needed where `align` is given.
        """
        names = list(views)
        packs = [views[name] for name in names]
        sizes_S = [len(pack.lengths) for pack in packs]
        features = self.fm.image(concat(packs))
        class_tokens = dict(zip(names, features.class_SD.split(sizes_S), strict=True))
        logits = dict(zip(names, self.head(features.class_SD).split(sizes_S), strict=True))
        output = StudentOutput(
            logits=logits, class_tokens=class_tokens, image_BE=None, text_BE=None, scale=None, bias=None
        )
        if align is None:
            return output
        if text is None:
            raise ValueError("a view to align needs the text to align it with")
        row = names.index(align)
        class_SD = features.stream_class_SD.split(sizes_S)[row]
        tokens_TD = features.stream_tokens_TD.split([p.patches_TP.shape[0] for p in packs])[row]
        pooled = self.fm.pool_studies(class_SD, tokens_TD, views[align], studies)
        output.image_BE = self.fm.project_image(pooled)
        output.phrases_BK = self.phrases(pooled) if self.phrases is not None else None
        output.text_BE = self.fm.encode_text(text)
        output.scale, output.bias = self.fm.contrast_scale()
        return output
