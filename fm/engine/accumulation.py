"""Gradient accumulation for losses that compare samples: every rank's whole share meets every other, in little memory.

Cached gradients (GradCache, Gao et al. 2021, arXiv:2101.06983), for any objective: first the outputs of all
micro-batches are computed without a graph and the objective runs on them as on one batch; its gradient with respect
to the outputs is kept. Then each micro-batch is computed again with a graph, and the kept gradient is sent through
it. The result is the gradient of the large batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fm.batch import PackedTokens, StudyBatch, TextBatch, concat
from fm.objectives.student import Patches, StudentOutput

Forward = Callable[..., StudentOutput]
"""``student(views, studies, align, text, patches)``."""


class Replay:
    """Stands in for a network while the objective runs on the joined micro-batches.

    It is called once with the joined batch, and answers with the outputs of the micro-batches laid end to end; of
    what it is given it needs only which views and whether texts are wanted.
    """

    def __init__(
        self, forward: Forward, micros: Sequence[StudyBatch], before: Callable[[int], None], *, keep: bool
    ) -> None:
        """Prepare.

        Args:
            forward: the network.
            micros: the micro-batches, in order.
            before: called with the number of each micro-batch before it is computed, to set its random state.
            keep: whether gradients with respect to the outputs are wanted.
        """
        self._forward = forward
        self._micros = micros
        self._before = before
        self._keep = keep
        self._asked: tuple[list[str], str | None, list[Patches] | None] | None = None
        self._outputs: list[dict[str, Tensor]] = []
        self._leaves: dict[str, Tensor] = {}

    def __call__(
        self,
        views: dict[str, PackedTokens],
        studies: int,
        align: str | None = None,
        text: TextBatch | None = None,
        patches: Patches | None = None,
    ) -> StudentOutput:
        """Outputs of all micro-batches as of one batch."""
        if self._asked is not None:
            raise RuntimeError("with gradient accumulation an objective may call each network once")
        parts = patches.split([micro.views for micro in self._micros]) if patches is not None else None
        self._asked = (list(views), align, parts)
        outputs = []
        with torch.no_grad():
            for number in range(len(self._micros)):
                outputs.append(self._compute(number))
        self._outputs = [_tensors(output) for output in outputs]
        joined = {
            # Temperature and bias are the same in every micro-batch; all else has a row per series, study or patch.
            name: first if first.ndim == 0 else torch.cat([parts[name] for parts in self._outputs])
            for name, first in self._outputs[0].items()
        }
        self._leaves = {name: value.detach().requires_grad_(self._keep) for name, value in joined.items()}
        return _rebuild(outputs[0], self._leaves)

    def surrogate(self, number: int, scale: float = 1.0) -> Tensor:
        """A scalar with the objective's gradient through micro-batch `number`; call after the objective's backward.

        Args:
            number: of the micro-batch.
            scale: what the objective was multiplied with before its backward pass; it is taken out again.
        """
        output = _tensors(self._compute(number))
        total = next(iter(output.values())).new_zeros((), dtype=torch.float32)
        for name, value in output.items():
            grad = self._leaves[name].grad
            if grad is None:
                continue
            if value.ndim == 0:
                grad = grad / len(self._micros)
            else:
                first = sum(len(parts[name]) for parts in self._outputs[:number])
                grad = grad[first : first + len(value)]
            total = total + (value.float() * (grad.float() / scale)).sum()
        return total

    def _compute(self, number: int) -> StudentOutput:
        if self._asked is None:
            raise RuntimeError("the objective has not asked for anything yet")
        names, align, parts = self._asked
        micro = self._micros[number]
        self._before(number)
        views = {name: micro.views[name] for name in names}
        patches = parts[number] if parts is not None else None
        return self._forward(views, micro.size, align, micro.text if align is not None else None, patches)


def join_batches(micros: Sequence[StudyBatch]) -> StudyBatch:
    """Micro-batches of one step as one batch; texts are padded to the longest."""
    if len(micros) == 1:
        return micros[0]
    first = [sum(micro.size for micro in micros[:number]) for number in range(len(micros))]
    length = max(micro.text.ids_BL.shape[1] for micro in micros)
    texts = [micro.text for micro in micros]
    pads = [(0, length - text.ids_BL.shape[1]) for text in texts]
    return StudyBatch(
        step=micros[0].step,
        keys=[key for micro in micros for key in micro.keys],
        weight_B=torch.cat([micro.weight_B for micro in micros]),
        patient_B=torch.cat([micro.patient_B for micro in micros]),
        views={
            name: concat(
                [
                    replace(micro.views[name], study_S=micro.views[name].study_S + row)
                    for micro, row in zip(micros, first, strict=True)
                ]
            )
            for name in micros[0].views
        },
        text=TextBatch(
            ids_BL=torch.cat([F.pad(text.ids_BL, pad) for text, pad in zip(texts, pads, strict=True)]),
            mask_BL=torch.cat([F.pad(text.mask_BL, pad) for text, pad in zip(texts, pads, strict=True)]),
            present_B=torch.cat([text.present_B for text in texts]),
            identity_B=torch.cat([text.identity_B for text in texts]),
            phrases_BK=torch.cat([text.phrases_BK for text in texts]),
            cut_B=torch.cat([text.cut_B for text in texts]),
        ),
    )


def _tensors(output: StudentOutput) -> dict[str, Tensor]:
    """The tensors of an output by name."""
    single = {
        "image": output.image_BE,
        "text": output.text_BE,
        "scale": output.scale,
        "bias": output.bias,
        "phrases": output.phrases_BK,
    }
    return {
        **{f"logits.{name}": value for name, value in output.logits.items()},
        **{f"class.{name}": value for name, value in output.class_tokens.items()},
        **{f"patches.{name}": value for name, value in output.patches.items()},
        **{f"tokens.{name}": value for name, value in output.tokens.items()},
        **{name: value for name, value in single.items() if value is not None},
    }


def _rebuild(like: StudentOutput, values: dict[str, Tensor]) -> StudentOutput:
    """The output whose tensors are `values`."""
    return StudentOutput(
        logits={name: values[f"logits.{name}"] for name in like.logits},
        class_tokens={name: values[f"class.{name}"] for name in like.class_tokens},
        image_BE=values.get("image"),
        text_BE=values.get("text"),
        scale=values.get("scale"),
        bias=values.get("bias"),
        phrases_BK=values.get("phrases"),
        patches={name: values[f"patches.{name}"] for name in like.patches},
        tokens={name: values[f"tokens.{name}"] for name in like.tokens},
    )
