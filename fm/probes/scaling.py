"""Standardisation of features by the training rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fm.probes.types import Floats


@dataclass(kw_only=True, slots=True)
class Scaler:
    """Mean and standard deviation of each feature; a constant feature becomes zero."""

    mean_D: Floats
    scale_D: Floats

    @classmethod
    def fit(cls, features_ND: Floats) -> Scaler:
        """From training rows only."""
        mean = features_ND.mean(axis=0, dtype=np.float64)
        std = features_ND.std(axis=0, dtype=np.float64)
        flat = std <= 1e-9 * np.maximum(np.abs(mean), 1e-9)
        return cls(mean_D=mean, scale_D=np.where(flat, np.inf, std))

    def apply(self, features_ND: Floats) -> Floats:
        """(N, D) float64 standardised."""
        return (features_ND - self.mean_D) / self.scale_D

    def unit(self, features_ND: Floats) -> Floats:
        """(N, D) float64 standardised, each row scaled to length 1."""
        scaled = self.apply(features_ND)
        length: Floats = np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-12)
        return scaled / length
