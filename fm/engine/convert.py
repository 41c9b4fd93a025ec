"""A checkpoint with its moments cut anew: into as many files as another number of ranks would have written."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fm.engine.checkpoint import STATE_FILE, CheckpointError, CheckpointStore
from fm.engine.manifest import COMMITTED, MANIFEST
from fm.engine.shard import MOMENTS, STARTS
from fm.engine.state import MOMENTS_FILE, read_state


def convert_layout(folder: Path, store: CheckpointStore, ranks: int) -> Path:
    """Commit a step to a store with its moments in so many shards; no number changes.

    The parameters with moments are laid end to end and cut into equal parts, as ZeRO does it, so that each rank's part
    is in memory alone.

    Args:
        folder: a verified checkpoint.
        store: receives the step.
        ranks: number of shards.

    Returns:
        The new step's folder.

    Raises:
        CheckpointError: the moments have gaps.
    """
    state = read_state(folder)
    old = [MOMENTS_FILE.format(number, state.world_size) for number in range(state.world_size)]
    partial = store.begin(state.step, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
    left_out = {STATE_FILE, MANIFEST, COMMITTED, *old}
    for path in sorted(folder.iterdir()):
        if path.name not in left_out:
            copy = shutil.copytree if path.is_dir() else shutil.copy2
            copy(path, partial / path.name)
    (partial / STATE_FILE).write_text(json.dumps(asdict(replace(state, world_size=ranks)), sort_keys=True))
    with ExitStack() as stack:
        parts = [_Part(stack.enter_context(safe_open(folder / name, "pt"))) for name in old]
        for number in range(ranks):
            tensors, starts = _cut(parts, number, ranks)
            save_file(tensors, partial / MOMENTS_FILE.format(number, ranks), {STARTS: json.dumps(starts)})
    return store.commit(state.step, partial)


class _Part:
    """One file of moments: runs of elements of parameters."""

    def __init__(self, file: Any) -> None:
        self._file = file
        starts: dict[str, int] = json.loads((file.metadata() or {}).get(STARTS, "{}"))
        self.runs = {name: (start, start + self._length(name)) for name, start in starts.items()}

    def read(self, key: str, first: int, last: int) -> Tensor:
        """Elements of a run, counted within it."""
        found: Tensor = self._file.get_slice(key)[first:last]
        return found

    def step(self, name: str) -> Tensor:
        found: Tensor = self._file.get_tensor(f"step/{name}")
        return found

    def _length(self, name: str) -> int:
        return int(self._file.get_slice(f"{MOMENTS[0]}/{name}").get_shape()[0])


def _cut(parts: list[_Part], number: int, ranks: int) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Tensors and starts of one of the new shards."""
    sizes: dict[str, int] = {}
    for part in parts:
        for name, (_, last) in part.runs.items():
            sizes[name] = max(sizes.get(name, 0), last)
    share = -(-sum(sizes.values()) // ranks)
    tensors: dict[str, Tensor] = {}
    starts: dict[str, int] = {}
    offset = 0
    for name in sorted(sizes):
        first = max(0, number * share - offset)
        last = min(sizes[name], (number + 1) * share - offset)
        offset += sizes[name]
        if first < last:
            starts[name] = first
            tensors |= {f"{moment}/{name}": _gather(parts, moment, name, first, last) for moment in MOMENTS}
            steps = [part.step(name) for part in parts if name in part.runs]
            tensors[f"step/{name}"] = torch.stack(steps).amax(dim=0)
    return tensors, starts


def _gather(parts: list[_Part], moment: str, name: str, first: int, last: int) -> Tensor:
    """Elements `first` to `last` of one moment of a parameter, from whichever files hold them."""
    out, filled = torch.empty(last - first), 0
    for part in parts:
        low, high = part.runs.get(name, (0, 0))
        start, stop = max(first, low), min(last, high)
        if start < stop:
            out[start - first : stop - first] = part.read(f"{moment}/{name}", start - low, stop - low)
            filled += stop - start
    if filled != last - first:
        raise CheckpointError(f"{moment} of {name} is there for {filled} of {last - first} elements")
    return out
