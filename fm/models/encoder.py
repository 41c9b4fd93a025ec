"""The frozen encoder as its users meet it: files, series and texts in, NumPy features out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from fm.config.errors import UserError
from fm.data.text import text_batch
from fm.data.tokenizer import load_tokenizer
from fm.data.volume import SeriesImage, read_nifti
from fm.models.config import FmConfig
from fm.models.model import FmModel
from fm.models.pool import mean_max

Features = NDArray[np.float32]


class EncoderError(UserError):
    """An encoder that cannot be loaded, or asked for what it does not hold."""


@dataclass(kw_only=True, slots=True)
class StudyFeatures:
    """Frozen features of B studies with S series in all. D model width, E width of the image–text space."""

    study: Features
    """(B, 4·D): mean of the series' class tokens, mean and maximum of all patch tokens, study encoder; for probes."""
    projected: Features
    """(B, E) unit embeddings in the image–text space; zeros for a study without series."""
    series: Features
    """(S, 4·D): the same four of each series alone."""
    series_projected: Features
    """(S, E)."""
    series_study: NDArray[np.int64]
    """(S,) row of each series' study."""


class Encoder:
    """A frozen model with its tokenizer."""

    def __init__(self, model: FmModel, tokenizer: PreTrainedTokenizerFast | None = None) -> None:
        model.train(False)
        self.model = model.requires_grad_(False)
        self.tokenizer = tokenizer
        self._cut: list[int] = []

    @property
    def texts_cut(self) -> int:
        """Texts so far that were longer than the encoder reads."""
        return len(self._cut)

    @property
    def text_tokens_cut(self) -> int:
        """Tokens of them that it did not read."""
        return sum(self._cut)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.device

    @property
    def dim(self) -> int:
        """E, the length of an embedding."""
        return int(self.model.config.embed_dim)

    def embed(self, item: str | Path | SeriesImage | Sequence[str | Path | SeriesImage]) -> Features:
        """(E,) unit embedding of one series, or (n, E) of a list of series; each is its own study.

        Args:
            item: path of a 3D NIfTI file, or a series already read.

        Raises:
            VolumeError: a file that is no readable 3D volume.
        """
        if isinstance(item, str | Path | SeriesImage):
            return self.embed_study([item])
        parts = [self.embed_study([one]) for one in item]
        return np.stack(parts) if parts else np.zeros((0, self.dim), np.float32)

    def embed_study(self, series: Sequence[str | Path | SeriesImage]) -> Features:
        """(E,) unit embedding of one study from all its series."""
        images = [one if isinstance(one, SeriesImage) else read_nifti(one) for one in series]
        projected: Features = self.encode_studies([images]).projected[0]
        return projected

    def embed_text(self, text: str | Sequence[str]) -> Features:
        """(E,) unit embedding of a report, or (n, E) of a list; an empty text gives zeros.

        Raises:
            EncoderError: the encoder came without a tokenizer.
        """
        if self.tokenizer is None:
            raise EncoderError("this encoder has no tokenizer, so it cannot read text; export it from its run again")
        texts = [text] if isinstance(text, str) else list(text)
        parts = []
        with torch.no_grad():
            for first in range(0, len(texts), 64):
                batch = text_batch(texts[first : first + 64], self.tokenizer)
                self._cut += batch.cut_B[batch.cut_B > 0].tolist()  # one operation: threads share an encoder
                batch = batch.to(self.model.device)
                rows = self.model.encode_text(batch) * batch.present_B.unsqueeze(1)
                parts.append(_numpy(rows))
        result = np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)
        return result[0] if isinstance(text, str) else result

    def encode_studies(self, studies: Sequence[Sequence[SeriesImage]]) -> StudyFeatures:
        """Features of a batch of studies in one pack; the caller chooses how many fit in memory."""
        count = len(studies)
        views = self.model.pack_series(studies)
        series = len(views.lengths)
        with torch.no_grad():
            found = self.model.encode_image(views, count)
            tokens = found.tokens_TD.float()
            own_S = torch.arange(series, device=tokens.device)
            own_T = own_S.repeat_interleave(views.offsets_S1.diff())
            study_T = views.study_S.repeat_interleave(views.offsets_S1.diff())
            class_BD, _ = mean_max(found.class_SD.float(), views.study_S, count)
            study = torch.cat([class_BD, *mean_max(tokens, study_T, count), found.study_BD.float()], 1)
            alone = torch.cat([found.class_SD.float(), *mean_max(tokens, own_T, series), found.series_SD.float()], 1)
            present_B = torch.zeros(count, 1, device=tokens.device).index_fill(0, views.study_S, 1.0)
            return StudyFeatures(
                study=_numpy(study),
                projected=_numpy(self.model.project_image(found.study_BD) * present_B),
                series=_numpy(alone),
                series_projected=_numpy(self.model.project_image(found.series_SD)),
                series_study=views.study_S.cpu().numpy(),
            )

    def save(self, folder: str | Path) -> None:
        """Write safetensors, configuration and tokenizer: a folder that :func:`load_encoder` reads."""
        disable_progress_bar()  # loading takes a second, and the bars break our own progress line
        self.model.save_pretrained(str(folder))
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(str(folder))


def load_encoder(
    folder: str | Path, device: str = "cpu", *, patch_voxels: tuple[int, int, int] | None = None
) -> Encoder:
    """The encoder exported to a local folder, in float32 and eval mode.

    Args:
        folder: what fm export wrote.
        device: where it computes.
        patch_voxels: (D, H, W) of the patches to read instead of those it was trained on: larger ones give fewer
            tokens, smaller ones finer features. The weights are resampled (FlexiViT, arXiv 2212.08013).

    Raises:
        EncoderError: no export there, or a damaged one.
        UserError: patches that the encoder's stem cannot read.
    """
    path = Path(folder)
    if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
        raise EncoderError(f"{folder}: no encoder there (config.json and *.safetensors); make one with fm export")
    disable_progress_bar()  # loading takes a second, and the bars break our own progress line
    try:
        config = FmConfig.from_pretrained(str(path), local_files_only=True)
        model = FmModel.from_pretrained(
            str(path), config=config, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    except Exception as err:  # safetensors, json and torch report damage through many types
        raise EncoderError(
            f"{folder}: not a readable encoder ({type(err).__name__}: {str(err).splitlines()[0]})"
        ) from err
    tokenizer = load_tokenizer(path) if (path / "tokenizer.json").is_file() else None
    if patch_voxels is not None:
        model.resize_patches(patch_voxels)
    torch.nn.Module.to(model, torch.device(device))
    return Encoder(model, tokenizer)


def untrained_like(encoder: Encoder, seed: int) -> Encoder:
    """An encoder of the same shape with fresh random weights: the baseline that training has to beat."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FmModel(FmConfig.from_dict(encoder.model.config.to_dict()))
    torch.nn.Module.to(model, encoder.model.device)
    return Encoder(model, encoder.tokenizer)


def _numpy(x: Tensor) -> Features:
    return np.asarray(x.float().cpu().numpy(), dtype=np.float32)
