"""What is trained: the encoder and the heads of its losses. The teacher is a copy of the same module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fm.batch import PackedTokens, TextBatch, concat
from fm.config.masking import HiddenFromStudent
from fm.config.objective import JointConfig
from fm.models.model import FmModel
from fm.models.names import load_former_name
from fm.models.vit import VitOutput
from fm.objectives.masks import masked_counts, visible
from fm.objectives.predictor import MaskToken, Places, Predictor


@dataclass(kw_only=True)  # no slots: DeepSpeed's ZeRO-3 hooks look for tensors in vars() of what a module returns
class StudentOutput:
    """Everything that the losses need from one forward pass. S_v sequences of view v, K prototypes, B studies."""

    logits: dict[str, Tensor]
    """Cosines to the prototypes of each view's class tokens, (S_v, K) float32, not yet divided by a temperature."""
    class_tokens: dict[str, Tensor]
    """(S_v, D) class tokens."""
    image_BE: Tensor | None = None
    """(B, E) unit study embeddings of the aligned view."""
    text_BE: Tensor | None = None
    """(B, E) unit text embeddings."""
    scale: Tensor | None = None
    bias: Tensor | None = None
    """Inverse temperature and bias of the image–text logits."""
    phrases_BK: Tensor | None = None
    """(B, K) float32 logits of each phrase standing in the study's report."""
    patches: dict[str, Tensor] = field(default_factory=dict)
    """What was found for the masked patches of each view: (M_v, K) cosines, or (M_v, P) voxels."""
    tokens: dict[str, Tensor] = field(default_factory=dict)
    """(T_v, D) patch tokens of each masked view, those of the whole view unless they were left out."""


@dataclass(kw_only=True, slots=True)
class Patches:
    """What a forward pass does with single patches, for the views that have a mask."""

    masks: dict[str, Tensor]
    """(T_v,) bool, True where a patch is masked."""
    hide: bool
    """Whether the encoder is kept from seeing them: so the student, while the teacher answers from whole views."""
    tokens: bool = False
    """Whether the patch tokens themselves are asked for."""

    def split(self, packs: Sequence[dict[str, PackedTokens]]) -> list[Patches]:
        """One for each of the micro-batches whose views, laid end to end, the masks are for."""
        parts = {
            name: mask_T.split([views[name].patches_TP.shape[0] for views in packs])
            for name, mask_T in self.masks.items()
        }
        return [
            Patches(masks={name: part[row] for name, part in parts.items()}, hide=self.hide, tokens=self.tokens)
            for row in range(len(packs))
        ]


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
    """Encoder and what its losses need in one module, so that one engine holds all that is trained.

    ``fm`` is the model that is exported.
    """

    def __init__(self, fm: FmModel) -> None:
        super().__init__()
        self.fm = fm
        self.predictor: Predictor | None = None

    @property
    def prototype_heads(self) -> list[PrototypeHead]:
        """All heads with prototypes."""
        return [part for part in self.children() if isinstance(part, PrototypeHead)]

    def align(
        self,
        output: StudentOutput,
        features: VitOutput,
        views: dict[str, PackedTokens],
        studies: int,
        name: str,
        text: TextBatch | None,
    ) -> Tensor:
        """Add the embeddings of view `name` and of the texts to the output; (B, D) pooled features of the studies."""
        if text is None:
            raise ValueError("a view to align needs the text to align it with")
        row, packs = list(views).index(name), list(views.values())
        class_SD = features.stream_class_SD.split([len(pack.lengths) for pack in packs])[row]
        tokens_TD = features.stream_tokens_TD.split([pack.patches_TP.shape[0] for pack in packs])[row]
        pooled = self.fm.pool_studies(class_SD, tokens_TD, views[name], studies)
        output.image_BE = self.fm.project_image(pooled)
        output.text_BE = self.fm.encode_text(text)
        output.scale, output.bias = self.fm.contrast_scale()
        return pooled


class JointStudent(StudentModule):
    """Encoder and heads of self-distillation and of the phrases."""

    def __init__(self, fm: FmModel, config: JointConfig, phrase_shares: Sequence[float] = ()) -> None:
        super().__init__(fm)
        self.phrases = PhraseHead(fm.config.dim, phrase_shares) if phrase_shares else None
        sizes = config.head_hidden_dim, config.head_bottleneck_dim, config.prototypes
        self.head = PrototypeHead(fm.config.dim, *sizes)
        masked = config.masked_patches
        self.patch_head: PrototypeHead | None = None
        self.mask_token: MaskToken | None = None
        if masked.weight > 0 and masked.untied_head:
            self.patch_head = PrototypeHead(fm.config.dim, *sizes)
        if masked.weight > 0 and masked.student is HiddenFromStudent.dropped:
            self.predictor = Predictor(masked.predictor, fm.image.config, fm.config.dim)
        elif masked.weight > 0:
            self.mask_token = MaskToken(fm.config.dim)

    def forward(
        self,
        views: dict[str, PackedTokens],
        studies: int,
        align: str | None = None,
        text: TextBatch | None = None,
        patches: Patches | None = None,
    ) -> StudentOutput:
        """Encode all views in one pack.

        Args:
            views: the views to encode; their class tokens go to the prototype head.
            studies: B, holes included.
            align: the view whose study embedding is matched with the text, or None.
            text: the reports; needed where `align` is given.
            patches: which patches are masked, and whether from the encoder.
        """
        names = list(views)
        shown = masked_views(views, patches) if self.predictor is not None else views
        packs = list(shown.values())
        sizes_S = [len(pack.lengths) for pack in packs]
        features = self.fm.image(concat(packs), self._replacement(views, patches))
        class_tokens = dict(zip(names, features.class_SD.split(sizes_S), strict=True))
        logits = dict(zip(names, self.head(features.class_SD).split(sizes_S), strict=True))
        output = StudentOutput(logits=logits, class_tokens=class_tokens)
        if patches is not None:
            self._find_patches(output, features, views, shown, patches)
        if align is not None:
            pooled = self.align(output, features, shown, studies, align, text)
            output.phrases_BK = self.phrases(pooled) if self.phrases is not None else None
        return output

    def _replacement(
        self, views: dict[str, PackedTokens], patches: Patches | None
    ) -> Callable[[Tensor], Tensor] | None:
        """What puts the mask token in the place of hidden patches, where that is how they are hidden."""
        token = self.mask_token
        if token is None or patches is None or not patches.hide:
            return None
        whole = [
            patches.masks.get(name, torch.zeros_like(view.position_T3[:, 0]).bool()) for name, view in views.items()
        ]
        mask_T = torch.cat(whole)
        return lambda x_TD: token(x_TD, mask_T)

    def _find_patches(
        self,
        output: StudentOutput,
        features: VitOutput,
        views: dict[str, PackedTokens],
        shown: dict[str, PackedTokens],
        patches: Patches,
    ) -> None:
        """Add cosines of the masked patches, and patch tokens where they are asked for."""
        lengths = [view.patches_TP.shape[0] for view in shown.values()]
        tokens = dict(zip(shown, features.tokens_TD.split(lengths), strict=True))
        if patches.tokens:
            output.tokens = {name: tokens[name] for name in patches.masks}
        if self.patch_head is None and self.mask_token is None and self.predictor is None:
            return
        if self.predictor is not None and patches.hide:
            found = predict_hidden(self.predictor, features, views, shown, patches.masks)
        else:
            found = {name: tokens[name][mask_T] for name, mask_T in patches.masks.items()}
        head = self.patch_head if self.patch_head is not None else self.head
        cosines = head(torch.cat(list(found.values())))
        output.patches = dict(zip(found, cosines.split([len(x) for x in found.values()]), strict=True))


def masked_views(views: dict[str, PackedTokens], patches: Patches | None) -> dict[str, PackedTokens]:
    """The views without the patches that are to be hidden."""
    if patches is None or not patches.hide:
        return views
    masks = patches.masks
    return {name: visible(view, masks[name]) if name in masks else view for name, view in views.items()}


def predict_hidden(
    predictor: Predictor,
    features: VitOutput,
    views: dict[str, PackedTokens],
    shown: dict[str, PackedTokens],
    masks: dict[str, Tensor],
) -> dict[str, Tensor]:
    """(M_v, O) answers for the hidden patches of each masked view, from the features of what was shown of them.

    Args:
        predictor: what answers.
        features: of the views in `shown`, laid end to end.
        views: whole.
        shown: the same without hidden patches.
        masks: of the views that have hidden patches.
    """
    classes = features.class_SD.split([len(view.lengths) for view in shown.values()])
    tokens = features.tokens_TD.split([view.patches_TP.shape[0] for view in shown.values()])
    rows = [row for row, name in enumerate(shown) if name in masks]
    names = [name for name in shown if name in masks]
    hidden = [masked_counts(masks[name], views[name]).tolist() for name in names]
    places = Places(
        visible_V3=torch.cat([shown[name].position_T3 for name in names]),
        hidden_M3=torch.cat([views[name].position_T3[masks[name]] for name in names]),
        visible_S=[n for name in names for n in shown[name].lengths],
        hidden_S=[n for counts in hidden for n in counts],
    )
    found = predictor(torch.cat([classes[row] for row in rows]), torch.cat([tokens[row] for row in rows]), places)
    return dict(zip(names, found.split([sum(counts) for counts in hidden]), strict=True))
