"""Tables of plain features with gaps: what the header-only and the pixel-statistics baselines see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fm.probes.types import Floats, Ints


@dataclass(kw_only=True, slots=True)
class FeatureTable:
    """Named columns (N, C); NaN where a value is missing."""

    columns: list[str]
    values_NC: Floats

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, float | str | None]]) -> FeatureTable:
        """One row per mapping; a word becomes one 0/1 column per value seen, an absent key is missing."""
        names: dict[str, None] = {}
        flat: list[dict[str, float]] = []
        worded: dict[str, set[str]] = {}
        for row in rows:
            for key, value in row.items():
                if isinstance(value, str):
                    worded.setdefault(key, set()).add(value)
                elif value is not None:
                    names.setdefault(key)
        for row in rows:
            numbers = {k: float(v) for k, v in row.items() if v is not None and not isinstance(v, str)}
            for key, values in worded.items():
                numbers |= {f"{key}={value}": float(row.get(key) == value) for value in values}
            flat.append(numbers)
        columns = sorted({*names, *(f"{key}={value}" for key, values in worded.items() for value in values)})
        table = np.full((len(rows), len(columns)), np.nan)
        place = {name: c for c, name in enumerate(columns)}
        for r, numbers in enumerate(flat):
            for name, number in numbers.items():
                table[r, place[name]] = number
        return cls(columns=columns, values_NC=table)

    def without(self, withheld: Iterable[str]) -> FeatureTable:
        """The table less withheld headers: the column itself, its word columns and its per-sequence columns."""
        gone = set(withheld)
        kept = [c for c, name in enumerate(self.columns) if name.split("=")[0].rsplit(":")[-1] not in gone]
        return FeatureTable(columns=[self.columns[c] for c in kept], values_NC=self.values_NC[:, kept])

    def filled(self, fit_rows: Ints) -> Floats:
        """(N, C') gaps filled with the median of `fit_rows`, beside 0/1 columns that say where the gaps were."""
        if not self.columns or not len(fit_rows):
            return np.zeros((len(self.values_NC), 1))
        missing = np.isnan(self.values_NC)
        seen = ~missing[fit_rows].all(axis=0)
        values, missing = self.values_NC[:, seen], missing[:, seen]
        median = np.nanmedian(values[fit_rows], axis=0) if seen.any() else np.zeros(0)
        gaps = np.unique(missing[:, missing.any(axis=0)], axis=1).astype(np.float64)
        filled: Floats = np.concatenate([np.where(missing, median, values), gaps], axis=1)
        return filled if filled.shape[1] else np.zeros((len(values), 1))
