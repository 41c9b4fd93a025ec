"""Pretraining: from prepared shards to a trained, exported encoder. One call per worker process."""

from __future__ import annotations

from fm.pretrain.run import pretrain

__all__ = ["pretrain"]
