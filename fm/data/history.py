"""What a manifest says of the files of a dataset, and of the datasets before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SAMPLES = "samples.parquet"


@dataclass(kw_only=True, slots=True)
class Shard:
    """One tar file of the dataset."""

    name: str
    sha256: str
    bytes: int
    samples: int


@dataclass(kw_only=True, slots=True)
class History:
    """How a dataset came from those before it; empty for one that was made at once."""

    parents: list[str] = field(default_factory=list)
    """Dataset ids, the oldest first."""
    changes: list[dict[str, Any]] = field(default_factory=list)
    """What was done to each parent: kind (append, withdraw), studies, shards."""
    samples: str = SAMPLES
    """Name of the table: one of its own for each of the chain, so that the manifest alone switches between them."""

    def named(self, table: str) -> str:
        """File of another table that belongs to this index: ``series-2.parquet`` beside ``samples-2.parquet``."""
        stem, dot, ending = table.rpartition(".")
        return stem + self.samples.removeprefix("samples").removesuffix(".parquet") + dot + ending

    def after(self, dataset_id: str, change: Mapping[str, Any]) -> History:
        """The history of the dataset that a change makes of `dataset_id`."""
        parents = [*self.parents, dataset_id]
        return History(
            parents=parents, changes=[*self.changes, dict(change)], samples=f"samples-{len(parents)}.parquet"
        )
