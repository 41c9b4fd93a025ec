"""One training that changes its processes and its ZeRO stage on the way, beside the same training left alone: a plot.

Run ``PYTHONPATH=. .venv/bin/python tests/pretrain/elastic.py docs/images/elastic.png``.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from conftest import SMALL, Nursery, rows_of, seen, write_dataset
from matplotlib import pyplot as plt

from fm.config import compose
from launch import runs

STUDIES, BATCH, EPOCHS = 24, 8, 8
STEPS = STUDIES // BATCH * EPOCHS
LAYOUTS = ((2, 2, 8), (4, 3, 16), (1, 0, STEPS))
"""Processes, ZeRO stage, and the step up to which an attempt trains."""
WORDS = (f"max_steps={STEPS}", "trainer.precision=fp32", "trainer.deterministic=true", "data.micro_batch_size=2")


def train(root: Path) -> tuple[Path, Path]:
    """The folders of the run that is left alone and of the one that changes."""
    url = write_dataset(root / "shards", STUDIES)
    calm, run = root / "calm", root / "run"
    for folder in (calm, run):
        runs.open_run(compose.parse("pretrain", [f"data.url={url}", f"run={folder}", *SMALL, *WORDS], []))
    nursery = Nursery()
    assert nursery.train(calm) == [0, 0]
    shutil.copytree(calm / "tokenizer", run / "tokenizer")
    done = 0
    for processes, stage, last in LAYOUTS:
        runs.open_run(
            compose.parse("pretrain", [f"run={run}", f"trainer.stage={stage}", f"launch.processes={processes}"], [])
        )
        stop = {"rank": 0, "phase": "backward", "turn": last - done, "deed": "SIGTERM"}
        faults = [stop] if last < STEPS else []
        assert set(nursery.train(run, *faults, ranks=processes)) == ({75} if faults else {0})
        done = last
    nursery.close()
    return calm, run


def count_samples(run: Path) -> None:
    """Every study once an epoch, or this ends with an error."""
    steps, a_round = seen(run, 4), STUDIES // BATCH
    for epoch in range(EPOCHS):
        counts = Counter(key for step in range(a_round) for key in steps[epoch * a_round + step + 1])
        assert len(counts) == STUDIES and set(counts.values()) == {1}, f"epoch {epoch}"


def draw(calm: Sequence[float], changed: Sequence[float], path: Path) -> float:
    """Both losses, and how far they are apart; returns the largest relative difference."""
    apart = [abs(a - b) / abs(b) for a, b in zip(changed, calm, strict=True)]
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(7.2, 4.6), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    above.plot(range(1, STEPS + 1), calm, color="0.7", linewidth=5, label="2 processes, ZeRO-2 throughout")
    first = 1
    for (processes, stage, last), colour in zip(LAYOUTS, ("#1b6ca8", "#c0562b", "#3a7d44"), strict=True):
        span = range(first, last + 1)
        label = f"{processes} process{'es' if processes > 1 else ''}, ZeRO-{stage}"
        above.plot(span, changed[first - 1 : last], color=colour, linewidth=1.5, marker="o", markersize=3, label=label)
        below.plot(span, apart[first - 1 : last], color=colour, linewidth=1.5, marker="o", markersize=3)
        first = last + 1
    for axes in (above, below):
        for _, _, last in LAYOUTS[:-1]:
            axes.axvline(last + 0.5, color="0.5", linewidth=0.8, linestyle=":")
        axes.spines[["top", "right"]].set_visible(False)
    above.set_ylabel("loss")
    above.legend(frameon=False, fontsize=8)
    below.axhline(1e-5, color="0.5", linewidth=0.8, linestyle="--")
    below.set_yscale("log")
    below.set_ylim(1e-9, 1e-4)
    below.set_ylabel("relative\ndifference")
    below.set_xlabel("step")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return max(apart)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        calm, run = train(Path(folder))
        count_samples(run)
        losses: list[list[float]] = [[row["loss"] for row in rows_of(one)] for one in (calm, run)]
        largest = draw(losses[0], losses[1], Path(sys.argv[1]))
    print(f"every study once in each of {EPOCHS} epochs; losses at most {largest:.1e} apart (relative)")


if __name__ == "__main__":
    main()
