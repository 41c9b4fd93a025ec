"""Schedules as pure functions of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from fm.config.optim import Decay, OptimConfig


def learning_rate(config: OptimConfig, step: int, max_steps: int) -> float:
    """Learning rate of step `step` (from 0): linear warm-up to the peak, then a decay to the final value.

    The decay is a cosine, or the peak is kept and a straight line follows in the last `decay_share` of the steps
    (warm-up, stable, decay: Hu et al., arXiv 2404.06395). The warm-up is cut to a tenth of a run that is shorter than
    ten warm-ups.
    """
    warmup = min(config.warmup_steps, max_steps // 10)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.decay is Decay.constant:
        falling = min(round(config.decay_share * max_steps), max_steps - warmup)
        done = min(max(step + 1 - (max_steps - falling), 0) / max(falling, 1), 1.0)
        return config.learning_rate + (config.final_learning_rate - config.learning_rate) * done
    return _cosine(config.learning_rate, config.final_learning_rate, step - warmup, max_steps - 1 - warmup)


def teacher_momentum(config: OptimConfig, step: int, max_steps: int) -> float:
    """Share of itself that the teacher keeps at step `step` (from 0): a cosine from the first to the final value."""
    return _cosine(config.teacher_momentum, config.final_teacher_momentum, step, max_steps - 1)


def _cosine(start: float, end: float, step: int, steps: int) -> float:
    done = min(max(step / steps, 0.0), 1.0) if steps > 0 else 1.0
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
