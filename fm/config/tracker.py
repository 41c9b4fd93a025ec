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
    """One Weights & Biases run per attempt, in a group named after the run; no code, data, host or path is sent."""

    wandb: WandbMode = WandbMode.offline
    project: str = "fm"
