"""What ended a rank, in a file: the launcher says which rank failed first, of what, and what to do."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

from fm.config.data import DataConfig
from fm.config.errors import UserError

ERRORS = "errors"
"""Folder of the run with one file per failed rank and attempt."""
_MEMORY = ("out of memory", "can't allocate memory", "DefaultCPUAllocator")


def record_error(run_dir: Path, attempt: str, rank: str, err: BaseException) -> None:
    """Keep what ended this rank."""
    refused = isinstance(err, UserError)
    message = " ".join(str(err).split())
    entry = {
        "time": time.time(),
        "rank": int(rank),
        "refused": refused,
        "message": message if refused else f"{type(err).__name__}: {message[:500]}",
    }
    folder = run_dir / ERRORS
    folder.mkdir(exist_ok=True)
    (folder / f"attempt-{attempt}-rank-{rank}.json").write_text(json.dumps(entry), encoding="utf-8")


def explained(err: BaseException, data: DataConfig, stage: int, rank: int, ranks: int) -> BaseException:
    """The error with advice where a person can do something about it; else the error itself.

    Args:
        err: what ended the rank.
        data: batch sizes and workers of the run.
        stage: its ZeRO stage.
        rank: the rank that failed.
        ranks: all ranks.
    """
    text = " ".join(str(err).split())
    if isinstance(err, MemoryError) or any(words in text for words in _MEMORY):
        asked = re.search(
            r"[Tt]ried to allocate ([\d.]+ ?\w+)|allocate memory: you tried to allocate (\d+) bytes", text
        )
        size = (asked[1] or f"{int(asked[2]) / 2**30:.2f} GiB") if asked else ""
        missing = f", asked for {size} more" if size else ""
        return UserError(f"rank {rank} is out of memory{missing}: {less_memory(data, stage, ranks)}")
    if isinstance(err, RuntimeError) and "DataLoader worker" in text and ("killed" in text or "exited" in text):
        half = max(1, data.workers // 2)
        return UserError(
            f"a data worker of rank {rank} was killed, perhaps for memory: run again to resume; if it happens again, "
            f"give data.workers={half} instead of {data.workers}, or data.prefetch=1"
        )
    return err


def less_memory(data: DataConfig, stage: int, ranks: int) -> str:
    """Which knob to turn, and how far, for a run that needs too much memory.

    A smaller micro-batch changes no result: accumulation makes up for it. Where it cannot fall any further the
    optimiser's share is next, then what a study brings along.
    """
    fits = [m for m in range(1, data.micro_batch_size // 2 + 1) if data.global_batch_size % (m * ranks) == 0]
    if fits:
        return (
            f"give data.micro_batch_size={fits[-1]} instead of {data.micro_batch_size}, which needs about "
            f"{1 - fits[-1] / data.micro_batch_size:.0%} less for activations and changes no result"
        )
    if stage < 2 and ranks > 1:
        return f"give trainer.stage=2 instead of {stage}, which splits gradients and optimiser over {ranks} ranks"
    if stage == 2 and ranks > 1:
        return f"give trainer.stage=3 instead of 2, which splits parameters and teacher over {ranks} ranks too"
    if data.max_series > 1:
        return f"give data.max_series={data.max_series // 2} instead of {data.max_series} in a new run"
    return "a single study does not fit: give a larger data.spacing_mm in a new run, or a device with more memory"
