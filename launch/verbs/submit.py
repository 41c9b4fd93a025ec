"""``fm submit``: any verb, on a cluster."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from fm.config import compose, registry
from fm.config.compose import Request
from fm.config.errors import ConfigError, UserError
from fm.config.jobs.cluster import SubmitJob
from fm.config.jobs.training import PretrainJob
from fm.config.launch import ClusterLaunch, KubernetesLaunch, SageMakerLaunch
from fm.config.load import build
from fm.config.root import JOBS
from launch import runs
from launch.cluster import engines, kubernetes, sagemaker
from launch.cluster.code import pack
from launch.cluster.spec import JobSpec, python_of
from launch.task import TASKS

OWN = ("verb", "dry_run", "jobs")
"""Keys of ``fm submit`` itself; all others belong to the verb that is sent, ``launch`` to both."""
SIGNAL_LEAD_S = 120
"""Seconds of notice for a verb that has no setting of its own."""
_NEVER_SENT = ("submit", "jobs list", "jobs logs", "jobs cancel", "jobs resubmit", "doctor", "runs list", "runs show")


def submit(words: Sequence[str], config_dirs: Sequence[Path], sweep: bool) -> int:
    """Compose the verb once, make its folder, and send it; returns the exit code.

    Args:
        words: ``key=value`` words after ``fm submit``.
        config_dirs: folders of one's own configuration files.
        sweep: whether several values of a key are a sweep.

    Raises:
        UserError: anything that is wrong with the words, or that the engine refuses; nothing was sent then.
    """
    job, rest = _own(words, config_dirs)
    launch = job.launch
    if not isinstance(launch, ClusterLaunch):
        raise ConfigError(
            f"launch={launch.kind}: fm submit sends to a cluster; here, run fm {job.verb}, or give launch=slurm"
        )
    request = compose.parse(job.verb, [word for word in rest if _belongs(word, job.verb)], config_dirs)
    swept = any(item.choices is not None for item in request.overrides)
    if swept and not sweep:
        raise ConfigError("several values are a sweep; add -m, or write [a,b] for a list")
    if not job.dry_run:
        engines.check(launch)
    if swept:
        return _sweep(job, launch, request)
    if job.verb == "pretrain":
        return _pretraining(job, launch, request)
    return _plain_verb(job, launch, request)


def resubmit(folder: Path) -> engines.Job:
    """Send the run of a folder once more, as its newest attempt has it.

    Raises:
        UserError: the folder holds no submitted run, or its job is still there.
    """
    before = engines.newest(folder)
    if (state := engines.state(before)) in ("waiting", "running"):
        raise UserError(f"folder={folder}: its job {before.id} is {state}; cancel it first: fm jobs cancel")
    job = runs.attempt_job(folder)
    if not isinstance(job, PretrainJob) or not isinstance(job.launch, ClusterLaunch):
        raise UserError(f"folder={folder}: only runs of fm pretrain go on; submit the verb again")
    return engines.submit(_spec(job, job.launch, folder.resolve(), pack(folder, runs.commit())))


def _own(words: Sequence[str], config_dirs: Sequence[Path]) -> tuple[SubmitJob, list[str]]:
    """The job of this verb, and the words of the other."""
    mine = [word for word in words if _key(word) in OWN or _key(word).split(".")[0] == "launch"]
    rest = [word for word in words if _key(word) not in OWN]
    request = compose.parse("submit", mine, config_dirs)
    verb = request.chosen("verb")
    known = [name for name in JOBS if name not in _NEVER_SENT and _exists(name)]
    if verb not in known:
        said = "missing: give verb=" if verb is None else f"verb={verb}: no such verb; "
        raise ConfigError(f"{said}{registry.hint(str(verb), known, 'pretrain')}")
    job = build(SubmitJob, compose.compose_values(request))
    assert isinstance(job, SubmitJob)
    return job, rest


def _pretraining(job: SubmitJob, launch: ClusterLaunch, request: Request) -> int:
    if job.dry_run:
        values = compose.compose_values(request)
        folder = Path(str(request.chosen("run") or "runs/NAME")).absolute()
        composed = build(PretrainJob, {**values, "run": str(folder)})
        print(engines.render(_spec(composed, launch, folder, registry.CONFIGS.parent)), end="")
        return 0
    folder, fresh = _opened(request, launch)
    try:
        composed = runs.attempt_job(folder)
        sent = engines.submit(_spec(composed, composed.launch, folder, pack(folder, runs.commit())))
    except UserError:
        if fresh:
            shutil.rmtree(folder)
        raise
    _say(sent, folder)
    return 0


def _opened(request: Request, launch: ClusterLaunch) -> tuple[Path, bool]:
    """The run folder of a request, made or gone on with, and whether it is new."""
    from launch.verbs.pretrain import check_batches

    chosen = request.chosen("run")
    fresh = chosen is None or not (Path(str(chosen)) / runs.RUN_FILE).is_file()
    opened = runs.open_run(request)
    folder = Path(str(opened.run)).absolute()
    try:
        if _sees_here(launch):
            check_batches(opened, launch.nodes * launch.processes)
    except UserError:
        if fresh:
            shutil.rmtree(folder)
        raise
    return folder, fresh


def _sweep(job: SubmitJob, launch: ClusterLaunch, request: Request) -> int:
    """Send every combination of the swept values as one array, one folder each below ``run``."""
    if job.verb != "pretrain" or launch.kind != "slurm":
        raise ConfigError("-m: a sweep is sent as one array of Slurm, of fm pretrain; else send its jobs one by one")
    children = compose.expand(request)
    parent = runs.sweep_parent(request).absolute()
    named = [runs.sweep_child(parent, number, child, request) for number, child in enumerate(children)]
    if job.dry_run:
        print(engines.render(_sweep_spec(launch, parent, registry.CONFIGS.parent, len(named))), end="")
        return 0
    if parent.exists():
        raise ConfigError(f"run={parent} exists; a sweep needs a new folder")
    try:
        folders = [_opened(child, launch)[0] for child in named]
        commands = [_command(launch, str(folder)) for folder in folders]
        (parent / TASKS).write_text(json.dumps(commands), encoding="utf-8")
        sent = engines.submit(_sweep_spec(launch, parent, pack(parent, runs.commit()), len(named)))
    except UserError:
        shutil.rmtree(parent, ignore_errors=True)
        raise
    _say(sent, parent)
    return 0


def _plain_verb(job: SubmitJob, launch: ClusterLaunch, request: Request) -> int:
    """Send a verb that runs as one process: the same command line, on one node."""
    if launch.nodes > 1:
        raise ConfigError(f"launch.nodes={launch.nodes}: fm {job.verb} runs on one node; it starts its own workers")
    values = compose.compose_values(request)
    if not (Path(str(request.chosen("run"))) / runs.RUN_FILE).is_file():
        build(JOBS[job.verb], values)
    words = [f"{item.key}={item.value}" for item in request.overrides if item.key.split(".")[0] != "launch"]
    words += [f"--config-dir={folder.resolve()}" for folder in request.config_dirs]
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    folder = (Path(job.jobs) / job.verb.replace(" ", "-") / stamp).absolute()
    code = registry.CONFIGS.parent if job.dry_run else pack(_made(folder), runs.commit())
    command = (python_of(launch), "-m", "launch.verbs.main", *job.verb.split(), *words)
    spec = JobSpec(
        name=launch.name or f"fm-{job.verb}",
        command=command,
        folder=folder,
        code="" if launch.image else str(code),
        launch=launch,
        signal_lead_s=SIGNAL_LEAD_S,
    )
    if job.dry_run:
        print(engines.render(spec), end="")
        return 0
    try:
        sent = engines.submit(spec)
    except UserError:
        shutil.rmtree(folder)
        raise
    _say(sent, folder)
    return 0


def _spec(job: PretrainJob, launch: ClusterLaunch, folder: Path, code: Path) -> JobSpec:
    seen = _nodes_folder(launch, folder)
    name = launch.name or folder.name
    return JobSpec(
        name=sagemaker.unique(name) if isinstance(launch, SageMakerLaunch) else name,
        command=tuple(_command(launch, seen)),
        folder=folder,
        code="" if launch.image else str(code),
        launch=launch,
        signal_lead_s=job.trainer.signal_lead_s,
    )


def _sweep_spec(launch: ClusterLaunch, parent: Path, code: Path, tasks: int) -> JobSpec:
    return JobSpec(
        name=launch.name or parent.name,
        command=(python_of(launch), "-m", "launch.task", str(parent)),
        folder=parent,
        code=str(code),
        launch=launch,
        signal_lead_s=SIGNAL_LEAD_S,
        tasks=tasks,
    )


def _command(launch: ClusterLaunch, folder: str) -> list[str]:
    seeds = {"kubernetes": [kubernetes.SEED], "sagemaker": [sagemaker.SEED]}.get(launch.kind, [])
    return [python_of(launch), "-m", "launch.node", folder, *seeds]


def _nodes_folder(launch: ClusterLaunch, folder: Path) -> str:
    if isinstance(launch, SageMakerLaunch):
        return sagemaker.nodes_folder(launch, folder.name)
    seen = launch.folder or str(folder)
    if isinstance(launch, KubernetesLaunch):
        kubernetes.check_folder(launch, seen)
    return seen


def _sees_here(launch: ClusterLaunch) -> bool:
    """Whether the nodes see the same files as this machine."""
    return launch.kind == "slurm"


def _belongs(word: str, verb: str) -> bool:
    """Whether a word is for the verb that is sent: `launch` is for training alone."""
    return verb == "pretrain" or _key(word).split(".")[0] != "launch"


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def _exists(verb: str) -> bool:
    return importlib.util.find_spec(f"launch.verbs.{verb.split()[0]}") is not None


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _say(sent: engines.Job, folder: Path) -> None:
    many = f" ({sent.tasks} tasks)" if sent.tasks > 1 else ""
    print(f"job {sent.id} of {sent.engine}{many}: {folder}")
    print(f"next: fm jobs list folder={folder.parent}; fm jobs logs folder={folder}")
