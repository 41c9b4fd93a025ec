"""What an exported encoder says of itself."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fm.config.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """The model card of an export."""

    license: str = "unknown"
    """Licence of the weights as the model hub writes it, e.g. apache-2.0 or other; it is nobody's to guess."""

    def __post_init__(self) -> None:
        """Refuse what would not be one word in the card's head."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", self.license):
            raise ConfigError(f"export.license={self.license}: give one word, e.g. apache-2.0, cc-by-nc-4.0 or other")
