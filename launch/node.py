"""One node's part of a submitted run: ``python -m launch.node RUN_DIR [SEED]``, which the engine starts on every node.

Ends with 0 when the run is done, 75 when it was saved and is to be started again, 1 when it failed; all nodes alike.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType

from fm.config.errors import UserError
from fm.config.jobs.training import PretrainJob
from fm.config.launch import ClusterLaunch
from fm.engine.failures import less_memory
from fm.engine.signals import REQUEUE_EXIT_CODE, STOP_SIGNALS
from launch.cluster.place import Place, find_place
from launch.entry import Topology, run_workers
from launch.runs import ATTEMPTS, RUN_FILE, attempt_job, begin_attempt
from launch.verbs.main import one_line

_LEAVE_S = 900
"""Seconds to wait at the end for node 0: as long as its workers need to find that another node is gone."""


def main(run_dir: Path, seed: Path | None = None) -> int:
    """Run the workers of this node; returns the exit code.

    Args:
        run_dir: the run folder as the nodes see it.
        seed: folder with the files of the run folder of the submitting machine, where the nodes do not see that.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, _nothing_begun)
    try:
        place = find_place()
        job = attempt_job(run_dir if seed is None else seed)
        if not isinstance(job, PretrainJob) or not isinstance(job.launch, ClusterLaunch):
            raise UserError(f"{run_dir} is no run that was submitted; start it with fm submit")
        return _take_part(job, job.launch, place, run_dir, seed)
    except UserError as err:
        print(f"fm: {one_line(err)}", file=sys.stderr, flush=True)
        return 1


def _take_part(job: PretrainJob, launch: ClusterLaunch, place: Place, run_dir: Path, seed: Path | None) -> int:
    from fm.parallel.meeting import Meeting

    meeting = Meeting(place.master, place.port, place.nodes, place.rank)
    if seed is not None and place.rank == 0:
        _plant(seed, run_dir)
    attempt = meeting.share("attempt", begin_attempt(run_dir) if place.rank == 0 else None)
    if seed is not None and place.rank:
        # Only where the nodes do not share the folder is there anything left to do.
        _plant(seed, run_dir)
    if launch.preflight:
        from launch.preflight.nodes import check_nodes

        check_nodes(job, launch, place, meeting, run_dir)
    if place.rank == 0:
        print(f"attempt {attempt} of {run_dir} on {place.nodes} nodes of {place.engine}", flush=True)
    try:
        code = run_workers(
            run_dir,
            attempt=attempt,
            place=Topology(
                processes=launch.processes,
                threads=launch.cpus_per_process,
                nodes=place.nodes,
                rank=place.rank,
                master=place.master,
                port=place.port + 1,
            ),
            signal_lead_s=job.trainer.signal_lead_s,
            max_steps=job.max_steps,
            advice=less_memory(job.data, job.trainer.stage, launch.processes * place.nodes),
        )
    except UserError as err:
        if place.rank == 0:
            print(f"fm: {one_line(err)}", file=sys.stderr, flush=True)
        code = 1
    return int(meeting.share("code", code, _LEAVE_S))


def _plant(seed: Path, run_dir: Path) -> None:
    """Begin the nodes' own run folder, or leave one that was begun before as it is."""
    if (run_dir / RUN_FILE).is_file():
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    for name in (ATTEMPTS, RUN_FILE):
        shutil.copyfile(seed / name, run_dir / name)


def _nothing_begun(number: int, frame: FrameType | None) -> None:
    """A stop signal before the workers listen: nothing is lost, so run again."""
    os._exit(REQUEUE_EXIT_CODE)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
