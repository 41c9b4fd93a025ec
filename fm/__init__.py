"""Pretraining of 3D encoders on MRI studies and their reports.

``fm.load_encoder(folder).embed("scan.nii.gz")`` embeds a scan. It is imported when asked for, so that ``import fm``
costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fm.models.encoder import Encoder, load_encoder

__version__ = "0.1.0"
__all__ = ["Encoder", "__version__", "load_encoder"]


def __getattr__(name: str) -> Any:
    if name in ("Encoder", "load_encoder"):
        from fm.models import encoder

        return getattr(encoder, name)
    raise AttributeError(f"module 'fm' has no attribute {name!r}")
