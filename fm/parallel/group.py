"""Joining the process group before Lightning does, so that the ranks agree on what to train before they build it."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

from fm.config.trainer import Device


def join(device: Device, timeout_s: int) -> None:
    """Join the group that the launcher's environment describes; alone where there is no launcher.

    Lightning's own call later finds the group up.

    Args:
        device: cpu (gloo) or cuda (nccl), resolved.
        timeout_s: seconds that a collective may wait for a lost rank.
    """
    if "MASTER_PORT" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
        }
    import deepspeed
    import torch

    if device is Device.cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        # The shared-memory op is compiled on first use and crashes where ninja or g++ is missing.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        "gloo" if device is Device.cpu else "nccl",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timedelta(seconds=timeout_s),
    )
