"""One rank of a world, as a process of its own: reads its share of the batches and writes what it saw.

``python -m tests.data.world '{"url": …, "world": 2, "rank": 1, "start": 0, "steps": 50, "workers": 0}'`` prints a line
of JSON for each micro-batch: step, keys, weights, and a hash of the pixels and positions of each study in each view.
"""

from __future__ import annotations

import hashlib
import json
import sys

import torch

from fm.batch import PackedTokens
from fm.config.data import DataConfig, Order
from fm.data.index import Manifest
from fm.data.reader import build_loader
from fm.data.tokenizer import train_tokenizer


def _pixels(view: PackedTokens, row: int) -> str:
    mine = (view.study_S == row).repeat_interleave(view.offsets_S1.diff())
    digest = hashlib.sha256(view.patches_TP[mine].numpy().tobytes())
    digest.update(view.position_T3[mine].numpy().tobytes())
    return digest.hexdigest()[:16]


def main(job: dict[str, object]) -> None:
    torch.set_num_threads(1)
    world = int(str(job["world"]))
    data = DataConfig(
        global_batch_size=4,
        micro_batch_size=1 if world > 1 else 4,
        spacing_mm=2.0,
        max_bad_fraction=0.5,
        workers=int(str(job["workers"])),
        order=Order(str(job.get("order", "shuffled"))),
        stream_buffer=5,
    )
    loader = build_loader(
        Manifest.open(str(job["url"])).select(split="train"),
        data,
        (2, 8, 8),
        train_tokenizer([], 1, 1, 8),
        seed=1,
        rank=int(str(job["rank"])),
        world_size=world,
        start_step=int(str(job["start"])),
        max_steps=int(str(job["steps"])),
    )
    for batch in loader:
        pixels = [[_pixels(view, row) for view in batch.views.values()] for row in range(batch.size)]
        line = {"step": batch.step, "keys": batch.keys, "weight": batch.weight_B.tolist(), "pixels": pixels}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
