"""Weights under the names and shapes of earlier versions: ``load_state_dict`` takes them too."""

from __future__ import annotations

from typing import Any

from torch import nn


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
