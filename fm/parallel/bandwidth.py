"""All-reduce among nodes, in MB/s: ``python -m fm.parallel.bandwidth MASTER PORT NODES RANK`` on each of them."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

import torch
from torch import distributed

_ELEMENTS = 4 << 20
_ROUNDS = 5


def main(master: str, port: int, nodes: int, rank: int) -> None:
    """Print the megabytes of float32 that are added up per second, the slowest of a few rounds left out."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"tcp://{master}:{port}",
        world_size=nodes,
        rank=rank,
        timeout=timedelta(seconds=120),
    )
    values = torch.ones(_ELEMENTS, device=device)
    seconds = []
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        distributed.all_reduce(values)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    distributed.destroy_process_group()
    print(f"{_ELEMENTS * 4 / 1e6 / sorted(seconds)[_ROUNDS // 2]:.1f}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
