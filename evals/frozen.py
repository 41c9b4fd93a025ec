"""What an evaluation asks of an encoder, whoever made it, and how one is told from another by its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from evals.foreign import ForeignEncoder, VolumeNetwork, load_slicewise, load_volume_network
from fm.data.volume import SeriesImage
from fm.models.config import FmConfig
from fm.models.encoder import Encoder, EncoderError, Features, StudyFeatures, load_encoder, untrained_like

NETWORK_FILE = "network.json"
"""Describes a 3D network of another library, see :func:`evals.foreign.load_volume_network`."""


class FrozenEncoder(Protocol):
    """An encoder that is measured but never trained."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def tokenizer(self) -> Any:
        """None where it reads no text."""

    @property
    def texts_cut(self) -> int:
        """Texts so far that were longer than it reads."""

    @property
    def text_tokens_cut(self) -> int:
        """Tokens of them that it did not read."""

    def encode_studies(self, studies: Sequence[Sequence[SeriesImage]]) -> StudyFeatures:
        """Features of a batch of studies."""

    def embed_text(self, text: str | Sequence[str]) -> Features:
        """(n, E) embeddings of texts in the space of its images."""


def load_frozen(folder: str | Path) -> FrozenEncoder:
    """The encoder in a folder: an export of fm, a vision model of transformers, or a 3D network of another library.

    Raises:
        EncoderError: none of these, or a damaged one.
    """
    path = Path(folder)
    if (path / NETWORK_FILE).is_file():
        return load_volume_network(path, path / NETWORK_FILE)
    if _model_type(path) in (None, FmConfig.model_type):
        return load_encoder(path)
    return load_slicewise(path)


def fresh(encoder: FrozenEncoder, seed: int) -> FrozenEncoder:
    """The same architecture with random weights: the baseline that training has to beat."""
    if isinstance(encoder, Encoder):
        return untrained_like(encoder, seed)
    if isinstance(encoder, ForeignEncoder):
        return encoder.untrained(seed)
    raise EncoderError(f"{type(encoder).__name__}: no way to make it anew with random weights")


def architecture(encoder: FrozenEncoder) -> dict[str, Any]:
    """What the report says of it: parameters of the image and of the text side, and its configuration."""
    if isinstance(encoder, Encoder):
        model = encoder.model
        text = sum(p.numel() for part in (model.text, model.text_projection) for p in part.parameters())
        return {
            "image_parameters": sum(p.numel() for p in model.parameters()) - text,
            "text_parameters": text,
            "config": {k: v for k, v in model.config.to_diff_dict().items() if not k.startswith("_")},
        }
    if isinstance(encoder, ForeignEncoder):
        return {
            "image_parameters": sum(p.numel() for p in encoder.network.parameters()),
            "text_parameters": 0,
            "config": {"reads": "volumes" if isinstance(encoder, VolumeNetwork) else "slices", **encoder.config},
        }
    raise EncoderError(f"{type(encoder).__name__}: nothing is known of its architecture")


def _model_type(path: Path) -> str | None:
    try:
        found = json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None  # load_encoder says what is missing
    return str(found) if found is not None else None
