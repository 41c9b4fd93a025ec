"""Weights as earlier versions saved them: ZeRO-3 wanted other modules and shapes, files kept theirs.

Exports are written and read in the first form, whatever the modules are called (:func:`register_export_format`);
``load_state_dict`` takes both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming


def load_former_name(module: nn.Module, former: str, name: str) -> None:
    """Let ``load_state_dict`` take what an earlier version saved as `former` for `name`; both relative to `module`."""

    def rename(_: nn.Module, state_dict: dict[str, Any], prefix: str, *__: Any) -> None:
        if prefix + former in state_dict:
            state_dict[prefix + name] = state_dict.pop(prefix + former)

    module.register_load_state_dict_pre_hook(rename)


def load_scalars(module: nn.Module, names: tuple[str, ...]) -> None:
    """Let ``load_state_dict`` take scalars for parameters of one element."""

    def reshape(_: nn.Module, state_dict: dict[str, Any], prefix: str, *__: Any) -> None:
        for name in names:
            if prefix + name in state_dict:
                state_dict[prefix + name] = state_dict[prefix + name].reshape(1)

    module.register_load_state_dict_pre_hook(reshape)


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
