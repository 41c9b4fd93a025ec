"""Which module speaks to which engine, and what a job's folder remembers of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from fm.config.launch import ClusterLaunch, KubernetesLaunch, SageMakerLaunch
from launch.cluster import kubernetes, sagemaker, slurm
from launch.cluster.spec import JobSpec, SubmitError

JOBS_FILE = "jobs.jsonl"
"""One line per job that was sent for a folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job that an engine has accepted."""

    engine: str
    id: str
    """The engine's own name of it."""
    time: str
    tasks: int = 1


def render(spec: JobSpec) -> str:
    """What the engine is sent, as text."""
    if isinstance(spec.launch, KubernetesLaunch):
        return kubernetes.render(spec)
    if isinstance(spec.launch, SageMakerLaunch):
        return sagemaker.render(spec)
    return slurm.render(spec)


def submit(spec: JobSpec) -> Job:
    """Send a job and remember it in its folder.

    Raises:
        SubmitError: the engine refused, or is not there; nothing was sent.
    """
    if isinstance(spec.launch, KubernetesLaunch):
        name = kubernetes.submit(spec)
    elif isinstance(spec.launch, SageMakerLaunch):
        name = sagemaker.submit(spec)
    else:
        name = slurm.submit(spec)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    job = Job(engine=spec.launch.kind, id=name, time=now, tasks=spec.tasks)
    with open(spec.folder / JOBS_FILE, "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(job)) + "\n")
    return job


def check(launch: ClusterLaunch) -> None:
    """Refuse, before a run folder is made, what can be known to fail.

    Raises:
        SubmitError: the first thing that would fail, and what to do.
    """
    if isinstance(launch, KubernetesLaunch):
        kubernetes.check(launch)
    elif not isinstance(launch, SageMakerLaunch):
        from fm.config.launch import SlurmLaunch

        assert isinstance(launch, SlurmLaunch)
        slurm.check(launch)


def jobs(folder: Path) -> list[Job]:
    """The jobs that were sent for a folder, oldest first."""
    path = folder / JOBS_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [Job(**json.loads(line)) for line in lines if line.strip()]


def newest(folder: Path) -> Job:
    """The job that was sent last.

    Raises:
        SubmitError: none was.
    """
    if not (found := jobs(folder)):
        raise SubmitError(f"folder={folder}: no job was submitted for it; see fm jobs list")
    return found[-1]


def state(job: Job) -> str:
    """waiting, running, done, failed, cancelled or unknown, as the engine says now."""
    module = {"slurm": slurm, "kubernetes": kubernetes, "sagemaker": sagemaker}[job.engine]
    return str(module.state(job.id))


def cancel(job: Job) -> None:
    """Stop a job for good.

    Raises:
        SubmitError: the engine's own words.
    """
    module = {"slurm": slurm, "kubernetes": kubernetes, "sagemaker": sagemaker}[job.engine]
    module.cancel(job.id)


def logs(folder: Path, job: Job) -> str:
    """What a job wrote, or the command that shows it."""
    if job.engine == "slurm":
        return "".join(path.read_text(errors="replace") for path in slurm.logs(folder, job.id))
    return kubernetes.logs(job.id) if job.engine == "kubernetes" else sagemaker.logs(job.id)
