"""Which studies make up global batch k: a pure function of (manifest, seed, k)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fm.config.data import DataConfig, Order
from fm.config.errors import ConfigError
from fm.data.index import Manifest
from fm.data.sample import Contrast
from fm.data.table import SampleTable

Rows = NDArray[np.int64]
Epochs = Callable[[int], tuple[Rows, Rows]]
"""The studies of an epoch, as many as there are: (N,) their rows in the manifest and (N,) their visits."""


class PlanError(ConfigError):
    """Batch sizes, weights, processes and studies that do not fit together."""


@dataclass(slots=True)
class Pick:
    """One study's place in the plan."""

    row: int
    """Row of the study in the manifest."""
    visit: int
    """Differs whenever the study is seen again, and keys its random numbers; without weights, the epoch."""


class BatchPlan:
    """An endless stream of epochs, laid end to end and cut into global batches. Nothing depends on ranks or workers."""

    def __init__(self, epochs: Epochs, studies: int, global_batch_size: int) -> None:
        """Plan over epochs of as many picks as there are studies.

        Raises:
            PlanError: fewer studies than one global batch.
        """
        if studies < global_batch_size:
            raise PlanError(
                f"{studies} training studies are fewer than data.global_batch_size={global_batch_size}: "
                f"lower it to at most {studies} or add studies"
            )
        self.studies = studies
        self.global_batch_size = global_batch_size
        self._epochs = epochs
        self._drawn: dict[int, tuple[Rows, Rows]] = {}

    def batch(self, k: int) -> list[Pick]:
        """The studies of global batch `k` ≥ 0, in order."""
        picks: list[Pick] = []
        at, end = k * self.global_batch_size, (k + 1) * self.global_batch_size
        while at < end:
            epoch, first = divmod(at, self.studies)
            rows, visits = self._epoch(epoch)
            part = slice(first, first + end - at)
            picks += [Pick(row, visit) for row, visit in zip(rows[part].tolist(), visits[part].tolist(), strict=True)]
            at += self.studies - first
        return picks

    def steps_per_epoch(self) -> float:
        """Global batches that one epoch takes; need not be whole."""
        return self.studies / self.global_batch_size

    def _epoch(self, epoch: int) -> tuple[Rows, Rows]:
        if epoch not in self._drawn:
            self._drawn = {e: drawn for e, drawn in self._drawn.items() if e == epoch - 1}
            self._drawn[epoch] = self._epochs(epoch)
        return self._drawn[epoch]


def plan_of(manifest: Manifest, data: DataConfig, seed: int) -> BatchPlan:
    """The plan that a configuration asks for, over the studies of `manifest`.

    Raises:
        PlanError: fewer studies than one global batch, weights that leave nothing to draw, or an unknown contrast.
    """
    samples = manifest.samples
    if unknown := sorted(set(data.contrast_weights) - set(Contrast)):
        raise PlanError(f"data.contrast_weights: {unknown[0]} is no contrast; choose from {', '.join(Contrast)}")
    if data.order is Order.stream:
        epochs = streamed(*samples.codes("shard"), seed, data.stream_buffer)
    else:
        epochs = shuffled(samples.by_key, seed, study_weights(samples, data))
    return BatchPlan(epochs, len(samples), data.global_batch_size)


def shuffled(order: Rows, seed: int, weights: NDArray[np.float64] | None = None) -> Epochs:
    """Epochs that are permutations by (seed, epoch): every study once.

    With weights a study comes ``N · weight / sum`` times an epoch, rounded up or down so that the mean over epochs is
    exact (systematic resampling, Kitagawa 1996, doi:10.1080/10618600.1996.10474692).

    Args:
        order: (N,) rows in the order of the studies' keys: the plan belongs to the studies, not to how a manifest
            happens to list them.
        seed: of the run.
        weights: (N,) of the studies in `order`, at least one above 0; None weighs all alike.
    """
    size = len(order)

    def plain(epoch: int) -> tuple[Rows, Rows]:
        return order[keyed_rng(seed, "epoch", epoch).permutation(size)], np.full(size, epoch, dtype=np.int64)

    if weights is None:
        return plain
    share = np.cumsum(weights / weights.sum()) * size
    share[-1] = size
    most = math.ceil(float(weights.max() / weights.sum()) * size) + 1

    def weighted(epoch: int) -> tuple[Rows, Rows]:
        ends = np.floor(share + keyed_rng(seed, "weights", epoch).uniform()).astype(np.int64)
        counts = np.diff(ends, prepend=0)
        again = np.arange(size) - np.repeat(ends - counts, counts)
        dealt = keyed_rng(seed, "epoch", epoch).permutation(size)
        return np.repeat(order, counts)[dealt], epoch * most + again[dealt]

    return weighted


def streamed(shard_N: Rows, names: Sequence[str], seed: int, window: int) -> Epochs:
    """Epochs that go through the shards one after another, in an order by (seed, epoch); the studies of every `window`
    in a row are shuffled among themselves, so that they can be read in one sweep.

    Args:
        shard_N: (N,) number of each study's shard; studies of a shard are listed as they lie in it.
        names: of the shards, by number.
        seed: of the run.
        window: studies that are shuffled together.
    """
    by_name = np.argsort(np.array(names, dtype=np.str_), kind="stable")
    blocks = np.arange(len(shard_N)) // window

    def epoch_of(epoch: int) -> tuple[Rows, Rows]:
        turn = np.empty(len(names), dtype=np.int64)
        turn[by_name] = keyed_rng(seed, "shards", epoch).permutation(len(names))
        rows = np.argsort(turn[shard_N], kind="stable")
        mixed = np.lexsort((keyed_rng(seed, "window", epoch).random(len(rows)), blocks))
        return rows[mixed].astype(np.int64), np.full(len(rows), epoch, dtype=np.int64)

    return epoch_of


def study_weights(samples: SampleTable, data: DataConfig) -> NDArray[np.float64] | None:
    """(N,) how often each study is drawn against others, in the order of their keys; None where all are drawn alike.

    A temperature *t* draws the group of *n* studies in proportion to ``n ** (1 / t)`` instead of *n*; weights of study,
    region and site multiply.

    Raises:
        PlanError: a label that is no weight, or nothing left to draw.
    """
    weights = np.ones(len(samples))
    if data.weight_label or data.site_temperature != 1:
        labels = [json.loads(row) for row in samples.column("labels").to_pylist()]
    if data.weight_label:
        weights *= [_weight(label.get(data.weight_label, 1), data.weight_label) for label in labels]
    if data.region_temperature != 1:
        weights *= _tempered(samples.codes("region")[0], data.region_temperature)
    if data.site_temperature != 1:
        sites = np.unique([str(label.get(data.site_label, "")) for label in labels], return_inverse=True)[1]
        weights *= _tempered(sites, data.site_temperature)
    if not weights.any():
        raise PlanError(f"data.weight_label={data.weight_label} gives every study the weight 0: nothing can be drawn")
    return None if (weights == weights[0]).all() else weights[samples.by_key]


def _tempered(group_N: Rows, temperature: float) -> NDArray[np.float64]:
    sizes = np.bincount(group_N).astype(np.float64)
    return np.asarray(sizes[group_N] ** (1 / temperature - 1))


def _weight(value: object, label: str) -> float:
    if isinstance(value, int | float) and math.isfinite(value) and value >= 0:
        return float(value)
    raise PlanError(f"data.weight_label={label}: {value!r} is no weight; use numbers from 0")


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
