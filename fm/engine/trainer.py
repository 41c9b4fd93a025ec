"""Lightning's Trainer with our parts in place of its defaults."""

from __future__ import annotations

import itertools
import logging
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence

import lightning.pytorch as pl
import torch

from fm.batch import StudyBatch
from fm.config.trainer import Device, Precision, TrainerConfig
from fm.parallel.strategy import make_strategy


def build_trainer(
    config: TrainerConfig,
    *,
    device: Device,
    precision: Precision,
    clip_norm: float,
    micro_batch_size: int,
    accumulation: int,
    callbacks: Sequence[pl.Callback],
) -> pl.Trainer:
    """A Trainer for one pass over a finite loader.

    Metrics, checkpoints, progress and resume are ours, so Lightning's own are off; the loader ends when the run does.

    Args:
        config: stage, determinism, timeouts.
        device: resolved device.
        precision: resolved precision.
        clip_norm: largest gradient norm.
        micro_batch_size: studies per rank and forward pass.
        accumulation: forward passes per step.
        callbacks: in the order in which they run.
    """
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=r".*`training_step` returned `None`.*")
    # DeepSpeed's ZeRO-3 calls collectives by names that torch 2.13 deprecates, twice a module.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    if config.deterministic:
        torch.use_deterministic_algorithms(True)
    return pl.Trainer(
        accelerator=device.value,
        devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", "1")),
        strategy=make_strategy(
            config,
            precision=precision,
            device=device,
            micro_batch_size=micro_batch_size,
            accumulation=accumulation,
            clip_norm=clip_norm,
        ),
        callbacks=list(callbacks),
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )


class Stream:
    """Global batches for Lightning, once through; it asks for an iterator twice and uses only the second."""

    def __init__(self, micros: Iterable[StudyBatch], accumulation: int) -> None:
        """Take the micro-batches of the rest of the run, of which each step has `accumulation` in a row."""
        self._micros = micros
        self.accumulation = accumulation
        self.wait_seconds = 0.0
        """Time that the newest step's micro-batches took to arrive."""

    def __iter__(self) -> Iterator[list[StudyBatch]]:
        """The micro-batches of each step; nothing is read before the first is asked for."""
        micros = iter(self._micros)
        while True:
            started = time.perf_counter()
            group = list(itertools.islice(micros, self.accumulation))
            self.wait_seconds = time.perf_counter() - started
            if not group:
                return
            yield group
