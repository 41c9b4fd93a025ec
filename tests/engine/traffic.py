"""Counts the bytes that a rank's processes write to their sockets in one step of DeepSpeed: ``traffic.py WORLD``.

Linux counts what a process writes (``wchar`` of ``/proc/self/io``); gloo writes to sockets, and nothing else writes
here meanwhile. Prints a JSON line for each stage and number format.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import torch
from torch import nn

from fm.config.trainer import Device
from fm.engine.masters import Masters
from fm.parallel.collectives import barrier, rank, shutdown, world_size
from fm.parallel.group import join

join(Device.cpu, 120)
import deepspeed  # noqa: E402 - after the group is up, as in training

WIDTH, LAYERS, STEPS = 512, 4, 3


def written() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


def bytes_of(action: Any) -> int:
    barrier()
    before = written()
    action()
    spent = written() - before
    barrier()
    return spent


def measure(stage: int, bf16: bool, freed: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    parameters = sum(p.numel() for p in model.parameters())
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "reduce_bucket_size": 50_000_000,
            "allgather_bucket_size": 50_000_000,
        },
    }
    if stage == 3:
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    if freed:
        config["zero_optimization"] |= {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}
    if bf16:
        config["bf16"] = {"enabled": True}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    masters = Masters(engine, model) if stage in (1, 2) else None
    spent: dict[str, int] = {}
    for _ in range(STEPS):  # the first ones may differ: DeepSpeed learns the order of the modules
        x = torch.randn(1, WIDTH, dtype=torch.bfloat16 if bf16 else torch.float32)
        held: list[torch.Tensor] = []
        spent["forward"] = bytes_of(lambda x=x, held=held: held.append(engine(x).float().square().mean()))
        spent["backward"] = bytes_of(lambda held=held: engine.backward(held[0]))
        spent["step"] = bytes_of(engine.step)
        spent["masters"] = bytes_of(masters.read) if masters is not None else 0
    facts = {"stage": stage, "bf16": bf16, "freed": freed, "parameters": parameters, "ranks": world_size()}
    return {**facts, **spent}


for stage, bf16, freed in (
    (0, False, False),
    (1, False, False),
    (2, False, False),
    (3, False, False),
    (3, False, True),  # weights are freed after the forward pass
    (1, True, False),
    (2, True, False),
    (3, True, False),
):
    found = measure(stage, bf16, freed)
    if rank() == 0:
        print("TRAFFIC", json.dumps(found), flush=True)
shutdown()
sys.exit(0)
