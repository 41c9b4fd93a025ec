"""Which studies make up global batch k: a pure function of (studies, seed, k)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fm.config.errors import ConfigError


class PlanError(ConfigError):
    """Batch sizes, processes and studies that do not fit together."""


@dataclass(slots=True)
class Pick:
    """One study's place in the plan."""

    row: int
    """Row of the study in the manifest."""
    epoch: int
    """How often the study was seen before; keys its random numbers."""


class BatchPlan:
    """An endless stream of epochs, cut into global batches.

    Each epoch is a permutation of all studies by (seed, epoch). Batches are cut from the epochs laid end to end, so
    every study comes once per epoch whatever the batch size. Nothing depends on ranks or workers.
    """

    def __init__(self, keys: Sequence[str], seed: int, global_batch_size: int) -> None:
        """Plan over study keys.

        Raises:
            PlanError: fewer studies than one global batch.
        """
        if len(keys) < global_batch_size:
            raise PlanError(
                f"{len(keys)} training studies are fewer than data.global_batch_size={global_batch_size}: "
                f"lower it to at most {len(keys)} or add studies"
            )
        # The order belongs to the studies, not to how the manifest happens to list them.
        self._sorted = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
        self.seed = seed
        self.global_batch_size = global_batch_size
        self._epochs: dict[int, NDArray[np.int64]] = {}

    def batch(self, k: int) -> list[Pick]:
        """The studies of global batch `k` ≥ 0, in order."""
        first, size = k * self.global_batch_size, len(self._sorted)
        return [
            Pick(row=int(self._order(i // size)[i % size]), epoch=i // size)
            for i in range(first, first + self.global_batch_size)
        ]

    def steps_per_epoch(self) -> float:
        """Global batches that one epoch takes; need not be whole."""
        return len(self._sorted) / self.global_batch_size

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._epochs:
            self._epochs = {e: order for e, order in self._epochs.items() if e == epoch - 1}
            rng = keyed_rng(self.seed, "epoch", epoch)
            self._epochs[epoch] = self._sorted[rng.permutation(len(self._sorted))]
        return self._epochs[epoch]


@dataclass(kw_only=True, slots=True)
class Shares:
    """How a global batch is dealt: `accumulation` micro-batches of `micro` studies to each of `world` ranks."""

    world: int
    micro: int
    accumulation: int

    def rows(self, rank: int, turn: int) -> slice:
        """The part of a global batch that `rank` takes in micro-batch `turn`."""
        first = (turn * self.world + rank) * self.micro
        return slice(first, first + self.micro)


def shares(global_batch_size: int, micro_batch_size: int, world: int) -> Shares:
    """Derive accumulation from the two batch sizes and the number of ranks.

    Raises:
        PlanError: the global batch is no multiple of ``micro_batch_size × world``; names the nearest that are.
    """
    unit = micro_batch_size * world
    if global_batch_size % unit:
        near = sorted({max(1, global_batch_size // unit) * unit, (global_batch_size // unit + 1) * unit})
        fits = [m for m in range(1, micro_batch_size + 1) if global_batch_size % (m * world) == 0]
        hint = f", or data.micro_batch_size={fits[-1]}" if fits else ""
        raise PlanError(
            f"data.global_batch_size={global_batch_size} is no multiple of data.micro_batch_size={micro_batch_size} × "
            f"{world} processes: use data.global_batch_size={' or '.join(map(str, near))}{hint}"
        )
    return Shares(world=world, micro=micro_batch_size, accumulation=global_batch_size // unit)


def keyed_rng(*key: str | int) -> np.random.Generator:
    """A generator for one purpose: equal keys give equal numbers, on every machine and in every process."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def stable_hash(text: str) -> int:
    """A 63-bit hash of a text, the same in every process; never 0."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 1) or 1
