"""Which checkpoints stay: the last ones, those at round steps, and the best by a gauge."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Best:
    """The best checkpoints by a number that the step's row of metrics holds."""

    count: int
    metric: str
    lower: bool = False
    """Whether a lower value is the better one."""


def superfluous(
    steps: Sequence[int],
    keep_last: int,
    keep_every_steps: int,
    best: Best | None,
    score: Callable[[int], float | None],
) -> list[int]:
    """The steps that go, ascending.

    Args:
        steps: committed steps, ascending.
        keep_last: how many of the newest stay.
        keep_every_steps: multiples of this stay; 0: none.
        best: how many of the best stay, and by what; None: none.
        score: the gauge at a step; None where it was not measured. Of equal values the newer step is the better one.
    """
    kept = set(steps[-keep_last:])
    if keep_every_steps:
        kept |= {step for step in steps if step % keep_every_steps == 0}
    if best is not None and best.count:
        sign = -1.0 if best.lower else 1.0
        scored = [(sign * value, step) for step in steps if (value := score(step)) is not None and math.isfinite(value)]
        kept |= {step for _, step in sorted(scored)[-best.count :]}
    return [step for step in steps if step not in kept]
