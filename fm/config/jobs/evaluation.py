"""The jobs that use a trained encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fm.config.data import DataConfig
from fm.config.suite import SuiteConfig


@dataclass(kw_only=True, slots=True)
class EvaluateJob:
    """Measure a frozen encoder on held-out studies, beside untrained, intensity-only, header-only and chance."""

    plain_form: ClassVar[str] = "fm evaluate encoder=DIR data.url=URL run=DIR"

    encoder: str = "???"
    """Folder of an exported encoder; of a vision model that transformers wrote, which then reads slice by slice; or of
    a 3D network with its network.json (docs/encoders.md)."""
    run: str | None = None
    """Folder of the evaluation; null: runs/<experiment>/<UTC time>."""
    data: DataConfig
    suite: SuiteConfig


@dataclass(kw_only=True, slots=True)
class EmbedJob:
    """Write the embeddings of images with a frozen encoder."""

    plain_form: ClassVar[str] = "fm embed encoder=DIR input=PATH out=FILE"
    filled: ClassVar[tuple[str, ...]] = ("data.url",)

    encoder: str = "???"
    """Folder of an exported encoder; of a vision model that transformers wrote, which then reads slice by slice; or of
    a 3D network with its network.json (docs/encoders.md)."""
    input: str = "???"
    """A NIfTI file, a folder of them, or the URL of shards."""
    out: str = "???"
    """Parquet file to write."""
    data: DataConfig
    """How object storage is read; the encoder itself says how studies are sampled."""


@dataclass(kw_only=True, slots=True)
class PredictJob:
    """Write what a fine-tuned model predicts: one row per study."""

    plain_form: ClassVar[str] = "fm predict model=DIR input=PATH out=FILE"
    filled: ClassVar[tuple[str, ...]] = ("data.url",)

    model: str = "???"
    """Folder that fm finetune exported."""
    input: str = "???"
    """A NIfTI file, a folder of them, or the URL of shards."""
    out: str = "???"
    """CSV or Parquet file to write, by its ending."""
    data: DataConfig
    """How object storage is read; the model itself says how studies are sampled."""
