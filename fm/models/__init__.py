"""The encoder. Importing this package registers it with transformers' AutoConfig and AutoModel."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel

from fm.models.build import build_model
from fm.models.config import FmConfig
from fm.models.export_format import register_export_format
from fm.models.model import FmModel, ImageFeatures

AutoConfig.register(FmConfig.model_type, FmConfig)
AutoModel.register(FmConfig, FmModel)
register_export_format(FmConfig.model_type)

__all__ = ["FmConfig", "FmModel", "ImageFeatures", "build_model"]
