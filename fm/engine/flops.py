"""Model FLOPs of a step, from shapes; what a method needs, not what an implementation executes.

A multiplication and an addition are two. With D channels, r the MLP's ratio, P voxels a patch, an encoder of L blocks
needs for a sequence of n tokens (prefix tokens included)

    F(n) = L (8 n D² + 4 r n D² + 4 n² D) + 2 n P D

(projections, MLP, attention, patch embedding; PaLM, arXiv 2204.02311, appendix B, counts the same), the text encoder
the same without patches. The student's backward pass needs twice its forward, the teacher has none:
3 · ΣF(student) + ΣF(teacher). Norms, pooling and losses are left out, and so is what accumulation or checkpointing
computes a second time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fm.batch import PackedTokens, TextBatch
from fm.objectives.predictor import Places, Predictor
from fm.objectives.student import StudentModule

DEVICE_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "A40": 149.7,
    "V100": 125.0,
}
"""Dense bf16 peak (V100: fp16) by a part of the device's name, from NVIDIA's data sheets; the first that fits."""


def transformer_flops(tokens: int, dim: int, depth: int, mlp_ratio: float) -> float:
    """Forward pass of one sequence through a transformer."""
    return depth * ((8 + 4 * mlp_ratio) * tokens * dim**2 + 4 * tokens**2 * dim)


def predictor_flops(predictor: Predictor) -> Callable[[torch.Tensor, torch.Tensor, Places], float]:
    """What counts a forward pass of a predictor: its queries pay for most maps, its context for keys and values."""
    dim, depth = predictor.config.dim, predictor.config.depth
    enter, leave = predictor.enter.in_features, predictor.leave.out_features

    def count(class_SD: torch.Tensor, visible_VD: torch.Tensor, places: Places) -> float:
        rows, context = sum(places.hidden_S), class_SD.shape[0] + visible_VD.shape[0]
        pairs = sum(hidden * (n + 1) for hidden, n in zip(places.hidden_S, places.visible_S, strict=True))
        block = 20 * rows * dim**2 + 4 * context * dim**2 + 4 * pairs * dim
        place = predictor.place.linear.in_features
        return float(depth * block + 2 * dim * (context * enter + rows * (leave + place)))

    return count


def device_tflops(configured: float) -> float | None:
    """Peak TFLOP/s of this rank's device: what the configuration says, else by name; None where nobody knows."""
    if configured > 0:
        return configured
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for part, peak in DEVICE_TFLOPS.items() if part in name), None)


class FlopMeter:
    """Adds up the model FLOPs of every forward pass of a student and its teacher, by hooks that see the shapes."""

    def __init__(self, student: StudentModule, teacher: StudentModule) -> None:
        self._total = 0.0
        for module, factor in ((student, 3.0), (teacher, 1.0)):
            config = module.fm.config
            prefix, patch = 1 + config.registers, math.prod(config.patch_voxels)

            def image(packs: PackedTokens, *_: Any, c: Any = config, prefix: int = prefix, patch: int = patch) -> float:
                lengths = packs.lengths
                blocks = sum(transformer_flops(n + prefix, c.dim, c.depth, c.mlp_ratio) for n in lengths)
                return float(blocks + 2 * sum(lengths) * patch * c.dim)

            def text(batch: TextBatch, c: Any = config) -> float:
                rows, length = batch.ids_BL.shape
                return float(rows) * transformer_flops(length, c.text_dim, c.text_depth, 4.0)

            parts: list[tuple[nn.Module, Any]] = [(module.fm.image, image), (module.fm.text, text)]
            for prototypes in module.prototype_heads:
                # Counted now: at ZeRO-3 a rank never sees the head's weights whole again.
                head_weights = sum(p.numel() for p in prototypes.parameters() if p.ndim == 2)

                def head(x_SD: torch.Tensor, weights: int = head_weights) -> float:
                    return 2.0 * x_SD.shape[0] * weights

                parts.append((prototypes, head))
            for part, count in parts:
                part.register_forward_pre_hook(self._hook(count, factor))
            if module.predictor is not None:
                module.predictor.register_forward_pre_hook(self._hook(predictor_flops(module.predictor), factor))

    def take(self) -> float:
        """FLOPs since the last call, on this rank."""
        total, self._total = self._total, 0.0
        return total

    def _hook(self, count: Any, factor: float) -> Any:
        def add(module: nn.Module, args: tuple[Any, ...]) -> None:
            # A student's pass without a graph is accumulation's first look: the second is the one that counts.
            if factor == 1.0 or torch.is_grad_enabled():
                self._total += factor * count(*args)

        return add
