from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from fm.parallel import collectives

TWO_RANKS = """
import os, sys
import torch, torch.distributed as dist
from fm.parallel.collectives import *
rank = int(sys.argv[1])
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[2], "RANK": str(rank), "WORLD_SIZE": "2"}
dist.init_process_group("gloo")

# f(x) = mean over ranks r of (r + 1) * sum(w * gathered(x)): the row of rank r gets w_r * (1 + 2), as one process says.
local = torch.arange(6, dtype=torch.float64).view(2, 3).add(10 * rank).requires_grad_()
weight = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)
gathered = all_gather_with_grad(local)
assert torch.equal(gathered, torch.cat([torch.arange(6.0).view(2, 3) + 10 * r for r in (0, 1)]).double())
((rank + 1) * (weight * gathered).sum()).backward()
assert torch.allclose(local.grad, 3 * weight[2 * rank : 2 * rank + 2]), local.grad

whole = all_gather_with_grad(torch.tensor([rank, 7 + rank]))
assert whole.tolist() == [0, 7, 1, 8] and whole.dtype == torch.int64

assert any_flag(rank == 1) and not any_flag(False)
assert any_flags(rank == 0, False, True) == (True, False, True)
assert sum_over_ranks(torch.tensor([1.0, rank])).tolist() == [2.0, 1.0]
assert gather_objects(f"r{rank}") == ["r0", "r1"]
assert broadcast_object({"from": rank}) == {"from": 0}
assert all_gather_flat(torch.full((2,), float(rank)), torch.empty(4)).tolist() == [0, 0, 1, 1]
assert (rank_ := globals()["rank"]) == rank and world_size() == 2
barrier()
shutdown()
assert not is_distributed()
print("fine")
"""


def test_two_ranks(tmp_path: Path) -> None:
    import socket

    script = tmp_path / "two_ranks.py"
    script.write_text(TWO_RANKS)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), port],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in ranks]
    assert all(process.returncode == 0 for process in ranks), "\n".join(outputs)
    assert all("fine" in out for out in outputs)


def test_alone_every_collective_is_the_identity() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert collectives.all_gather_with_grad(x) is x
    assert collectives.any_flags(True, False) == (True, False)
    assert torch.equal(collectives.sum_over_ranks(x), x.detach())
    assert collectives.gather_objects(1) == [1] and collectives.broadcast_object("a") == "a"
    assert collectives.rank() == 0 and collectives.world_size() == 1
    assert collectives.all_gather_flat(torch.ones(2), torch.empty(2)).tolist() == [1, 1]
    collectives.barrier()
    collectives.shutdown()
