"""Slurm: a batch script around ``srun``, sent by ``sbatch``.

The script itself queues the job again, after the step has ended and only while Slurm still counts the job as running:
a requeue from inside the step can be killed by the step's own signal, and a job that was cancelled must stay cancelled.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

from fm.config.launch import Container, SlurmLaunch
from launch.cluster.spec import LOGS, JobSpec, SubmitError

SCRIPT = "job.sbatch"
_GRACE_S = 15
"""Seconds that Slurm may be late with the signal: it looks at time limits about every 30 s."""
_STATES = {
    "PENDING": "waiting",
    "CONFIGURING": "waiting",
    "REQUEUED": "waiting",
    "RUNNING": "running",
    "COMPLETING": "running",
    "SUSPENDED": "running",
    "COMPLETED": "done",
    "CANCELLED": "cancelled",
    "PREEMPTED": "waiting",
}


def render(spec: JobSpec) -> str:
    """The batch script of a job."""
    launch = _launch(spec)
    log = "%A_%a.log" if spec.tasks > 1 else "%j.log"
    options = {
        "job-name": spec.label,
        "nodes": str(launch.nodes),
        "ntasks-per-node": "1",
        "cpus-per-task": str(spec.cpus),
        "time": str(launch.minutes),
        "signal": f"USR1@{spec.signal_lead_s + _GRACE_S}",
        "output": f"{spec.folder}/{LOGS}/{log}",
        "open-mode": "append",
        "mem": f"{launch.memory_gb}G" if launch.memory_gb else "",
        "gpus-per-node": str(launch.gpus or ""),
        "partition": launch.partition,
        "account": launch.account,
        "qos": launch.qos,
        "constraint": launch.constraint,
        "array": _array(spec, launch),
    }
    lines = ["#!/usr/bin/env bash"]
    lines += [f"#SBATCH --{name}={_quoted(value)}" for name, value in options.items() if value]
    lines += ["#SBATCH --requeue", *(["#SBATCH --exclusive"] if launch.exclusive else [])]
    lines += [f"#SBATCH {option}" for option in launch.options]
    lines += ["set -uo pipefail", ""]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in spec.variables.items()]
    lines += [f': "${{{name}:?is a secret of this job, but is not set here}}"' for name in launch.secrets]
    lines += [
        'FM_MASTER=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "export FM_MASTER",
        "# Jobs that share a node must not share ports.",
        'export FM_PORT="${FM_PORT:-$((20000 + SLURM_JOB_ID % 10000 * 3))}"',
        *([] if spec.tasks == 1 else ["export FM_TASK=$SLURM_ARRAY_TASK_ID"]),
        "",
        "# A signal to this shell must not end it before the step has saved.",
        "trap : TERM USR1",
        f"{_srun(spec, launch)} &",
        "step=$!",
        'wait "$step"',
        "code=$?",
        "# A signal ends the wait, not the step.",
        'while [ "$code" -gt 128 ] && kill -0 "$step" 2>/dev/null; do',
        '  wait "$step"',
        "  code=$?",
        "done",
        "",
        f'if [ "$code" -eq 75 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {launch.requeues} ]; then',
        "  job=${SLURM_JOB_ID}",
        "  state=$(scontrol --oneliner show job \"$job\" | sed -n 's/.* JobState=\\([A-Z]*\\).*/\\1/p')",
        '  if [ "$state" = RUNNING ]; then',
        '    echo "saved and stopped; queued again"',
        '    scontrol requeue "$job" && sleep 60',
        "  fi",
        "fi",
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def submit(spec: JobSpec) -> str:
    """Write the script into the job's folder and send it; returns Slurm's number of the job.

    Raises:
        SubmitError: there is no ``sbatch`` here, a partition that the cluster lacks, or Slurm's own refusal.
    """
    launch = _launch(spec)
    check(launch)
    script = spec.folder / SCRIPT
    script.write_text(render(spec), encoding="utf-8")
    (spec.folder / LOGS).mkdir(exist_ok=True)
    # What the submitting shell was told about a job of its own must not reach the new one.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("SLURM_") or name == "SLURM_CONF"
    }
    said = _call(["sbatch", "--parsable", str(script)], environment)
    return said.strip().split(";")[0]


def check(launch: SlurmLaunch) -> None:
    """Refuse, before anything is sent, what can be known to fail.

    Raises:
        SubmitError: no Slurm here, an unknown partition, more nodes or GPUs than it has, an image or secret that is
            missing.
    """
    if shutil.which("sbatch") is None:
        raise SubmitError("launch=slurm: there is no sbatch here; submit from a login node of the cluster")
    for name in launch.secrets:
        if not os.environ.get(name):
            raise SubmitError(f"launch.secrets: {name} is not set in this shell; export it, then submit again")
    if launch.image and "://" not in launch.image and launch.image.startswith("/") and not Path(launch.image).exists():
        raise SubmitError(f"launch.image={launch.image}: no such file")
    rows = [line.split("|") for line in _call(["sinfo", "--noheader", "--format=%R|%D|%G|%c"]).splitlines() if line]
    partitions = sorted({row[0] for row in rows})
    if launch.partition and launch.partition not in partitions:
        raise SubmitError(f"launch.partition={launch.partition}: this cluster has {', '.join(partitions)}")
    mine = [row for row in rows if not launch.partition or row[0] == launch.partition]
    most = max((sum(int(row[1]) for row in mine if row[0] == name) for name in {row[0] for row in mine}), default=0)
    if launch.nodes > most:
        raise SubmitError(f"launch.nodes={launch.nodes}: the partition has {most}")
    gpus = max((sum(int(n) for n in re.findall(r"gpu(?::[a-zA-Z_]\w*)?:(\d+)", row[2])) for row in mine), default=0)
    if launch.gpus > gpus:
        raise SubmitError(f"launch.gpus={launch.gpus}: the nodes have {gpus or 'none'}")


def state(job: str) -> str:
    """A job's state: waiting, running, done, failed, cancelled, or unknown where Slurm has forgotten it."""
    try:
        said = _call(["scontrol", "--oneliner", "show", "job", job])
    except SubmitError:
        return "unknown"
    found = re.findall(r"JobState=([A-Z_]+)", said)
    # A job that lost a node is queued again by Slurm itself, a moment later.
    again = {"NODE_FAIL": "waiting"} if "Requeue=1" in said else {}
    words = {{**_STATES, **again}.get(word, "failed") for word in found}
    return next((word for word in ("running", "waiting", "failed", "cancelled", "done") if word in words), "unknown")


def cancel(job: str) -> None:
    """Stop a job for good."""
    _call(["scancel", job])


def logs(folder: Path, job: str) -> list[Path]:
    """The files that a job wrote, oldest first."""
    return sorted((folder / LOGS).glob(f"{job}*.log"), key=lambda path: path.stat().st_mtime)


def _quoted(value: str) -> str:
    """A value as sbatch reads it in a script: a space ends it but for quotes."""
    return f'"{value}"' if " " in value else value


def _srun(spec: JobSpec, launch: SlurmLaunch) -> str:
    words = ["srun", "--kill-on-bad-exit=0"]
    command = list(spec.command)
    if launch.container is Container.pyxis:
        words += [f"--container-image={launch.image}", f"--container-mounts={','.join(_mounts(spec, launch))}"]
    if launch.container is Container.apptainer:
        binds = [word for mount in _mounts(spec, launch) for word in ("--bind", mount)]
        command = ["apptainer", "exec", *(["--nv"] if launch.gpus else []), *binds, launch.image, *command]
    return shlex.join([*words, *command])


def _mounts(spec: JobSpec, launch: SlurmLaunch) -> list[str]:
    return [f"{spec.folder}:{spec.folder}", *launch.mounts]


def _array(spec: JobSpec, launch: SlurmLaunch) -> str:
    if spec.tasks == 1:
        return ""
    return f"0-{spec.tasks - 1}" + (f"%{launch.parallel}" if launch.parallel else "")


def _launch(spec: JobSpec) -> SlurmLaunch:
    assert isinstance(spec.launch, SlurmLaunch)
    return spec.launch


def _call(words: list[str], environment: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment)
    except (OSError, subprocess.TimeoutExpired) as err:
        raise SubmitError(f"{words[0]} does not answer ({type(err).__name__}): is the cluster up?") from err
    if done.returncode:
        raise SubmitError(f"{words[0]} refused: {' '.join((done.stderr or done.stdout).split())}")
    return done.stdout
