"""Worker processes forked from one that has imported everything: a start costs a second, not twenty.

Reads one JSON request a line, runs the workers of one attempt to their end and answers with their exit codes. The
workers are those of ``fm pretrain`` (:func:`launch.worker.main`), but for a fault that strikes where it is told to.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import deepspeed  # noqa: F401 - what takes long is imported before the fork
import faults
import torch

import fm.pretrain.run  # noqa: F401
import launch.worker


def main() -> None:
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(attempt(json.loads(line))), flush=True)


def attempt(request: dict[str, Any]) -> list[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [born(request, rank, port) for rank in range(request["ranks"])]
    deadline = time.monotonic() + request["timeout_s"]
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            codes[pid] = os.waitstatus_to_exitcode(status)
        elif time.monotonic() > deadline:
            for pid in set(children) - set(codes):
                os.kill(pid, signal.SIGKILL)
        else:
            time.sleep(0.02)
    return [codes[pid] for pid in children]


def born(request: dict[str, Any], rank: int, port: int) -> int:
    if pid := os.fork():
        return pid
    code = 99
    try:
        run_dir = Path(request["run_dir"])
        log = os.open(run_dir / "events.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.environ |= request["environment"]
        world = str(request["ranks"])
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "FM_ATTEMPT": request["attempt"]}
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        faults.observe(run_dir, rank)
        for fault in request["faults"]:
            if fault["rank"] in (rank, "all"):
                faults.inject(**fault)
        code = launch.worker.main(run_dir)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
