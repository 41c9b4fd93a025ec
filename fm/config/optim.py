"""Optimiser, learning-rate schedule and teacher momentum."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fm.config.errors import ConfigError


class Decay(StrEnum):
    """How the learning rate falls after the warm-up; members are named as YAML writes them."""

    cosine = "cosine"
    """From the peak at the end of the warm-up to the final value at the last step."""
    constant = "constant"
    """The peak until the last `decay_share` of the run, then a straight line to the final value."""


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """AdamW with a linear warm-up and a decay; the teacher's momentum rises by a cosine over the same steps."""

    learning_rate: float = 1e-3
    """Peak learning rate, reached at the end of the warm-up."""
    final_learning_rate: float = 1e-6
    """Learning rate at the last step."""
    warmup_steps: int = 100
    decay: Decay = Decay.cosine
    decay_share: float = 0.2
    """Share of all steps in which a constant learning rate falls at the end; the cosine does not read it."""
    weight_decay: float = 0.05
    """Decoupled decay of matrices; vectors (biases, norms, scales) and embeddings get none."""
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-8
    clip_norm: float = 3.0
    """Largest global gradient norm; 0 turns clipping off."""
    teacher_momentum: float = 0.99
    """Share of itself that the teacher keeps per step, at step 0."""
    final_teacher_momentum: float = 1.0
    """The same at the last step."""

    def __post_init__(self) -> None:
        """Refuse values that no training could use."""
        self.decay = Decay(self.decay)
        if self.learning_rate <= 0 or not 0 <= self.final_learning_rate <= self.learning_rate:
            raise ConfigError(
                f"optim.learning_rate={self.learning_rate} must be positive and no smaller than "
                f"optim.final_learning_rate={self.final_learning_rate} (which must not be negative)"
            )
        if self.warmup_steps < 0:
            raise ConfigError(f"optim.warmup_steps={self.warmup_steps} must not be negative")
        if not 0 <= self.decay_share <= 1:
            raise ConfigError(f"optim.decay_share={self.decay_share} must lie in [0, 1]")
        if min(self.weight_decay, self.clip_norm) < 0 or self.epsilon <= 0:
            raise ConfigError("optim: weight_decay and clip_norm must not be negative, epsilon must be positive")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ConfigError(f"optim.beta1={self.beta1} and optim.beta2={self.beta2} must lie in [0, 1)")
        if not 0 <= self.teacher_momentum <= self.final_teacher_momentum <= 1:
            raise ConfigError(
                f"optim.teacher_momentum={self.teacher_momentum} must lie in [0, 1] and must not exceed "
                f"optim.final_teacher_momentum={self.final_teacher_momentum}"
            )
