"""What machines cost."""

from __future__ import annotations

from dataclasses import dataclass

from fm.config.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class PriceConfig:
    """Prices of one's own contract, in any one currency; 0: not asked for."""

    gpu_hour: float = 0.0
    """Of one GPU for one hour, on demand."""
    spot_gpu_hour: float = 0.0
    """Of one GPU for one hour that may be taken away."""
    kwh: float = 0.0
    """Of one kWh of electricity."""

    def __post_init__(self) -> None:
        """Refuse negative prices and those that are no number."""
        for name in ("gpu_hour", "spot_gpu_hour", "kwh"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"price.{name}={getattr(self, name)}: must be a number from 0 on")
