"""FmModel: 3D image encoder, study pooling and text encoder in one transformers model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.initialization import constant_, normal_, ones_, zeros_

from fm.batch import PackedTokens, TextBatch
from fm.data.collate import pack
from fm.data.views import Lattice, whole_view
from fm.data.volume import SeriesImage, read_nifti
from fm.models.config import FmConfig
from fm.models.names import load_scalars
from fm.models.patch import ConvStem, LinearStem, Sizes
from fm.models.pool import GatedPool
from fm.models.study import StudyTransformer
from fm.models.text import TextEncoder
from fm.models.vit import LayerScale, Prefix, VisionTransformer


@dataclass(kw_only=True)  # no slots: DeepSpeed's ZeRO-3 hooks look for tensors in vars() of what a module returns
class ImageFeatures:
    """Features of a pack. S series views, T patch tokens, B studies, D channels."""

    class_SD: Tensor
    """Class token of each series view."""
    tokens_TD: Tensor
    """Dense features, one per patch, in the order of the pack."""
    series_SD: Tensor
    """The study encoder's answer to each series alone."""
    study_BD: Tensor
    """The study encoder's answer to all series of a study; zeros for a study without series."""


class ContrastScale(nn.Module):
    """Learnt inverse temperature and bias of the image–text logits; a module, so that ZeRO-3 can gather them.

    Vectors of one element: DeepSpeed 0.19.8 cannot broadcast scalars.
    """

    max_scale = 100.0

    def __init__(self, config: FmConfig) -> None:
        super().__init__()
        self.start = math.log(1 / config.initial_temperature), config.initial_bias
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(1))
        load_scalars(self, ("log_scale", "bias"))

    def forward(self) -> tuple[Tensor, Tensor]:
        """(scale, bias), float32 scalars; the scale is at most 100 as in CLIP."""
        log_scale, bias = self.log_scale.float().clamp(max=math.log(self.max_scale)), self.bias.float()
        # A sum, not a view: under ZeRO-3 the parameter itself is empty once this forward has ended.
        return log_scale.exp().sum(), bias.sum()


class FmModel(PreTrainedModel):
    """Encoder of MRI studies and reports; after ``import fm.models``, ``AutoModel.from_pretrained`` loads it."""

    config_class = FmConfig
    base_model_prefix = "fm"
    main_input_name = "patches_TP"
    _supports_sdpa = True
    _no_split_modules = ["Block"]  # noqa: RUF012  (transformers reads a list)

    def __init__(self, config: FmConfig) -> None:
        super().__init__(config)
        self.image = VisionTransformer(config)
        attends = config.study_encoder == "attention"
        self.pool = StudyTransformer(config) if attends else GatedPool(config.dim, config.pool_heads)
        self.image_projection = nn.Linear(config.dim, config.embed_dim, bias=False)
        self.text = TextEncoder(config)
        self.text_projection = nn.Linear(self.text.dim, config.embed_dim, bias=False)
        self.scale = ContrastScale(config)
        self.post_init()  # type: ignore[no-untyped-call]  # transformers has no types here
        self.text.choose_trained()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Linear maps N(0, 1/fan-in), embeddings and prefix tokens N(0, 0.02²), norms 1, biases 0.

        transformers calls this for modules that hold parameters of their own, and for no others: what a module's parts
        start from cannot be said at the module.
        """
        if isinstance(module, nn.Linear):
            normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.LayerNorm):
            ones_(module.weight)
            zeros_(module.bias)
            if module is self.image.norm:
                # Once all else of the image tower is drawn: equal seeds give the weights that they always gave.
                normal_(self.image.prefix.tokens, std=self.config.initializer_range)
        elif isinstance(module, Prefix) and module is not self.image.prefix:
            normal_(module.tokens, std=self.config.initializer_range)
        elif isinstance(module, LayerScale):
            constant_(module.scale, self.config.layer_scale)
        elif isinstance(module, ContrastScale):
            constant_(module.log_scale, module.start[0])
            constant_(module.bias, module.start[1])

    def encode_image(self, views: PackedTokens, studies: int) -> ImageFeatures:
        """Encode a pack that indexes `studies` studies."""
        features = self.image(views)
        own_S = torch.arange(features.class_SD.shape[0], device=features.class_SD.device)
        stream = features.stream_class_SD, features.stream_tokens_TD
        return ImageFeatures(
            class_SD=features.class_SD,
            tokens_TD=features.tokens_TD,
            series_SD=self._pool(*stream, views, own_S, len(own_S)),
            study_BD=self._pool(*stream, views, views.study_S, studies),
        )

    def pool_studies(self, class_SD: Tensor, tokens_TD: Tensor, views: PackedTokens, studies: int) -> Tensor:
        """(B, D): the study encoder over each study, for tokens encoded already, before the last norm."""
        return self._pool(class_SD, tokens_TD, views, views.study_S, studies)

    def _pool(self, class_SD: Tensor, tokens_TD: Tensor, views: PackedTokens, group_S: Tensor, groups: int) -> Tensor:
        """(groups, D): all series of each group together."""
        if isinstance(self.pool, StudyTransformer):
            study: Tensor = self.pool(class_SD, tokens_TD, views, group_S, groups)
            return study
        pooled: Tensor = self.pool(torch.cat([class_SD, tokens_TD]), _rows(group_S, views), groups)
        return pooled

    def embed_study(self, views: PackedTokens, studies: int) -> Tensor:
        """(B, E) projected study embeddings of unit length; a study without series gives zeros."""
        return self.project_image(self.encode_image(views, studies).study_BD)

    def project_image(self, pooled_BD: Tensor) -> Tensor:
        """(B, D) pooled features to (B, E) of unit length in the shared space, float32."""
        return F.normalize(self.image_projection(pooled_BD).float(), dim=-1)

    def encode_text(self, text: TextBatch) -> Tensor:
        """(B, E) text embeddings of unit length, float32; rows without a text are meaningless."""
        return F.normalize(self.text_projection(self.text(text)).float(), dim=-1)

    @property
    def lattice(self) -> Lattice:
        """The patch lattice that this model's input is sampled on."""
        d, h, w = self.config.patch_voxels
        return Lattice(
            patch_voxels=(d, h, w),
            spacing_mm=self.config.spacing_mm,
            slice_spacing_mm=self.config.slice_spacing_mm,
            min_tissue=self.config.min_tissue,
        )

    @torch.no_grad()
    def resize_patches(self, patch_voxels: Sizes) -> None:
        """Read patches of another size with the same weights from now on; exact at the present size.

        Raises:
            UserError: a convolutional stem whose cells do not divide such a patch.
        """
        stem = self.image.stem
        assert isinstance(stem, LinearStem | ConvStem)
        stem.resize(patch_voxels)
        self.config.patch_voxels = list(patch_voxels)

    def pack_series(self, studies: Sequence[Sequence[SeriesImage]]) -> PackedTokens:
        """Whole, unaugmented views of all series of each study, as one pack on the model's device."""
        rows = [(row, whole_view(image, self.lattice)) for row, study in enumerate(studies) for image in study]
        patch_size = math.prod(self.config.patch_voxels)
        return pack([v for _, v in rows], [row for row, _ in rows], patch_size).to(self.device)

    @torch.no_grad()
    def embed_nifti(self, path: str | Path) -> NDArray[np.float32]:
        """(E,) unit embedding of one 3D NIfTI file, taken as a study of one series; `model.eval()` is the caller's.

        Raises:
            VolumeError: the file is no readable 3D volume.
        """
        embedding: NDArray[np.float32] = self.embed_study(self.pack_series([[read_nifti(path)]]), 1)[0].cpu().numpy()
        return embedding

    def contrast_scale(self) -> tuple[Tensor, Tensor]:
        """(scale, bias) of the image–text logits."""
        scale, bias = self.scale()
        return scale, bias

    def forward(self, views: PackedTokens, studies: int | None = None) -> ImageFeatures:
        """Same as :meth:`encode_image`; `studies` defaults to the largest study row of the pack plus one."""
        if studies is None:
            studies = int(views.study_S.max()) + 1 if views.study_S.numel() else 0
        return self.encode_image(views, studies)


def _rows(value_S: Tensor, views: PackedTokens) -> Tensor:
    """A number per sequence, for class tokens first and then for every patch token."""
    spread_T = value_S.repeat_interleave(views.offsets_S1.diff(), output_size=views.patches_TP.shape[0])
    return torch.cat([value_S, spread_T])
