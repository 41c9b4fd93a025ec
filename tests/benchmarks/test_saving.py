"""How long a save holds up training, beside a plain copy of the same tensors in memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from fm.engine.checkpoint import CheckpointStore
from fm.engine.saver import Saver
from fm.engine.snapshot import Snapshot
from tests.benchmarks.measure import Timing, table

MEGABYTES = (16, 128, 1024)
ROUNDS = 5
TENSORS = 96
"""As many as a small model has parameters; their sizes go from one to many times that, as in a model."""


def test_a_save_blocks_no_longer_than_a_copy(tmp_path: Path) -> None:
    rows = []
    for megabytes in MEGABYTES:
        state = _state(megabytes)
        nbytes = sum(value.nbytes for value in state.values())
        saver = Saver(CheckpointStore(tmp_path / str(megabytes), keep_last=1), 0, lambda: "cpu")
        copied, blocked, behind = Timing(), Timing(), Timing()
        for number in range(1, ROUNDS + 1):
            copied.seconds.append(_timed(partial(_copies, state)))
            blocked.seconds.append(_timed(partial(saver.start, number, nbytes, partial(_snapshot, state))))
            # The next round starts when this one is on disk, as a run's saves do: they are minutes apart.
            behind.seconds.append(_timed(saver.finish))
            assert saver.saved_step == number
        ratio = blocked.median / copied.median
        rows.append(
            [
                f"{nbytes / 1e6:.0f}",
                *(f"{1000 * t.median:.1f} ({_spread(t)})" for t in (copied, blocked)),
                f"{ratio:.2f}",
                f"{behind.median:.2f}",
            ]
        )
        assert ratio < 3, "a save waits for more than its copy"
    head = ["MB", "copy of the tensors, ms", "save holds up, ms", "ratio", "behind the trainer's back, s"]
    table("A save and the step that it holds up", head, rows, ["torch", "safetensors"])


def _state(megabytes: int) -> dict[str, torch.Tensor]:
    unit = megabytes * 2**20 // 4 // (TENSORS * (TENSORS + 1) // 2)
    return {f"p{i}": torch.rand(unit * (i + 1)) for i in range(TENSORS)}


def _copies(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in state.items()}


def _snapshot(state: dict[str, torch.Tensor]) -> Snapshot:
    taken = Snapshot()
    taken.add("state.safetensors", state)
    return taken


def _timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _spread(timing: Timing) -> str:
    return f"{1000 * min(timing.seconds):.1f}–{1000 * max(timing.seconds):.1f}"
