"""Where metrics go beside metrics.jsonl, which every run writes and which is the truth."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class WandbMode(StrEnum):
    """Whether Weights & Biases gets a copy of the metrics; named as YAML writes it."""

    off = "off"
    offline = "offline"
    """Written under the run folder; `wandb sync` uploads it later."""
    online = "online"


@dataclass(kw_only=True, slots=True)
class TrackerConfig:
    """Copies of the metrics, numbers only: no code, data, host or path is sent anywhere."""

    wandb: WandbMode = WandbMode.offline
    """One Weights & Biases run per attempt, in a group named after the run."""
    project: str = "fm"
    """Project of the Weights & Biases runs."""
    tensorboard: bool = False
    """Whether the run folder also gets scalars for `tensorboard --logdir RUN/tensorboard`."""
