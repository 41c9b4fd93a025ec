"""Exports are written and read in their first form, whatever the modules that hold the weights are called today."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming


class _Reshape(ConversionOps):
    """A single element, as a scalar in the file and as a vector in the model, or the other way round."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Any]:
        """Reshape the one tensor that transformers hands over."""
        found = next(iter(input_dict.values()))
        tensor: Tensor = found[0] if isinstance(found, list) else found
        return {target_patterns[0]: tensor.reshape(self.shape)}

    @property
    def reverse_op(self) -> ConversionOps:
        """What saving does."""
        return _Reshape(() if self.shape else (1,))


def register_export_format(model_type: str) -> None:
    """Tell transformers how exports name and shape what the model holds otherwise."""
    register_checkpoint_conversion_mapping(
        model_type,
        [
            WeightRenaming(r"^image\.prefix(?!\.tokens)", r"image\.prefix\.tokens"),
            *(WeightConverter(name, name, [_Reshape((1,))]) for name in ("scale.log_scale", "scale.bias")),
        ],
        overwrite=True,
    )
