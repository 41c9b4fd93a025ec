"""Row 17: a process that dies costs one job, and the run goes on."""

from __future__ import annotations

import os
import resource
import signal

from data_prep.pool import Processes


def work(job: int) -> int:
    if job == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return 10 * job


def gave_up(job: int) -> int:
    return -job


def address_space(job: int) -> int:
    return resource.getrlimit(resource.RLIMIT_AS)[0] + job


def test_results_come_in_order_and_a_killer_costs_only_itself() -> None:
    with Processes(2, 16) as pool:
        assert list(pool.ordered(work, range(9), gave_up)) == [0, 10, 20, -3, 40, 50, 60, 70, 80]
        assert list(pool.ordered(work, [5], gave_up)) == [50]


def test_memory_is_bounded() -> None:
    with Processes(1, 2.5) as pool:
        assert list(pool.ordered(address_space, [0], gave_up)) == [int(2.5 * 2**30)]
