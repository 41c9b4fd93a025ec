"""Run folders: start, resume, repeat, and the record of every attempt.

A run folder holds ``run.yaml`` (the composed job with commit and dataset id under ``about``) and ``attempts.jsonl``,
one line per start. Keys that may change between attempts are kept there, never in ``run.yaml``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fm.config import compose, registry
from fm.config.compose import Override, Request
from fm.config.data import DataConfig
from fm.config.errors import ConfigError, UserError
from fm.config.jobs.training import PretrainJob, TrainingJob
from fm.config.load import Plain, build, difference, plain, read, save
from fm.config.root import JOBS

RUN_FILE = "run.yaml"
ATTEMPTS = "attempts.jsonl"
BEGUN = "begun"
"""File with the name of the attempt that an engine started last."""
COMMIT = "COMMIT"
"""File of a packed copy of the code with the commit that it was made from."""
MAY_CHANGE = ("launch.", "tracker.", "trainer.", "export.")
"""Prefixes of keys that an attempt may change: no result changes but by rounding. :data:`MAY_CHANGE_KEYS` too."""
NEVER_CHANGE = ("trainer.checkpoint_url",)
"""Keys that are none of these: a run that looked for its checkpoints elsewhere would begin again."""
MAY_CHANGE_KEYS = ("max_steps", "data.accept", "data.micro_batch_size", "data.prefetch", "data.workers")
PLACE_KEYS = ("run", "from_run")
"""Keys that say where a run lies or came from; they are not part of its configuration."""


def open_run(request: Request) -> Any:
    """The job to execute, its run folder created or checked and this attempt recorded; ``job.run`` is the folder.

    - ``run`` absent: a new folder ``runs/<experiment>/<UTC time>``;
    - a folder without a run: start; with ``from_run``, that run's configuration is taken;
    - a folder with a run: go on with its configuration. Overrides may repeat it, or change the keys of an attempt;
    - a folder that was lost, with ``trainer.checkpoint_url``: what lies there makes the folder anew, then as above.

    Raises:
        ConfigError: the overrides differ from the run that the folder holds, the folder holds something else, or the
            configuration cannot be composed.
    """
    folder = Path(str(request.chosen("run") or _default_folder(request)))
    source = request.chosen("from_run")
    if (folder / RUN_FILE).is_file():
        if source is not None:
            raise ConfigError(f"run={folder} holds a run already; from_run needs a new folder")
        return _resume(request, folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"run={folder} exists and holds no {RUN_FILE}; name a new folder")
    if source is not None:
        values = _changed(request, _current(request.verb, Path(str(source))))
    else:
        values = compose.compose_values(request)
        if _restored(request.verb, values, folder):
            return _resume_restored(request, folder)
    return start(request.verb, values, folder, request)


def start(verb: str, values: Plain, folder: Path, request: Request | None = None) -> Any:
    """Create a run folder for a new job and record its first attempt."""
    job = build(JOBS[verb], {**values, "run": str(folder)})
    _check_place(job)
    facts = _facts(verb, job)
    folder.mkdir(parents=True, exist_ok=True)
    save(job, folder / RUN_FILE, **facts)
    _record(folder, {}, request)
    return job


def open_stage(verb: str, job: Any, folder: Path) -> Any:
    """The run folder of one stage of a larger verb: started with `job`, or gone on with where it exists.

    Raises:
        ConfigError: the folder holds a run whose configuration differs from `job`.
    """
    if not (folder / RUN_FILE).is_file() and not _restored(verb, plain(job), folder):
        return start(verb, plain(job), folder)
    return _go_on(verb, folder, plain(job), None)


def begin_attempt(folder: Path) -> str:
    """The name of the attempt that starts now, in a run that an engine may start again by itself.

    A recorded attempt that never began is begun; else one like the last is recorded.
    """
    recorded = attempts(folder)
    begun = folder / BEGUN
    if begun.is_file() and begun.read_text().strip() == str(recorded[-1]["attempt"]):
        _record(folder, recorded[-1]["changes"], None)
    name = str(attempts(folder)[-1]["attempt"])
    begun.write_text(name)
    return name


def attempt_job(folder: Path) -> Any:
    """The job of the newest attempt in a run folder: what worker processes read.

    Raises:
        ConfigError: the folder holds no run.
    """
    facts, _ = read(folder / RUN_FILE)
    return build(JOBS[facts["verb"]], {**_current(facts["verb"], folder), "run": str(folder)})


def trained_job(folder: Path, name: str) -> PretrainJob:
    """The job of a run of fm pretrain; `name` is what the user calls the folder.

    Raises:
        UserError: no run there, or another verb's.
    """
    if not (folder / RUN_FILE).is_file():
        raise UserError(f"from_run={name}: no {RUN_FILE} there; give the run folder of fm pretrain")
    job = attempt_job(folder)
    if not isinstance(job, PretrainJob):
        raise UserError(f"from_run={name} is no run of fm pretrain")
    return job


def copy_run(folder: Path, out: Path, checkpoint: Path) -> None:
    """Make a run folder like another, for a checkpoint of it that is going to lie there; its trace comes along."""
    facts, _ = read(folder / RUN_FILE)
    job = attempt_job(folder)
    job.trainer.checkpoint_url, job.run = "", str(out)
    out.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer", "phrases.json", ATTEMPTS, "metrics.jsonl"):
        source = checkpoint / name if (checkpoint / name).is_file() else folder / name
        if source.is_dir():
            shutil.copytree(source, out / name)
        elif source.is_file():
            shutil.copyfile(source, out / name)
    _record(out, {}, None)
    save(job, out / RUN_FILE, **facts)


def sweep_parent(request: Request) -> Path:
    """The folder that the jobs of a sweep share."""
    return Path(str(request.chosen("run") or _default_folder(request)))


def sweep_child(parent: Path, number: int, job: Request, request: Request) -> Request:
    """One job of a sweep, in a child folder named by its number and the values that vary."""
    swept = [item.key for item in request.overrides if item.choices is not None]
    words = [f"{item.key}={item.value}".replace("/", "_") for item in job.overrides if item.key in swept]
    child = parent / ",".join([f"{number:03d}", *words])[:120]
    kept = [item for item in job.overrides if item.key != "run"]
    return replace(job, overrides=[*kept, Override("run", str(child))])


def _resume_restored(request: Request, folder: Path) -> Any:
    try:
        return _resume(request, folder)
    except ConfigError:
        shutil.rmtree(folder)  # it was made for this run, which is another
        raise


def _restored(verb: str, values: Plain, folder: Path) -> bool:
    """Whether a run that lost its folder was found at the place of its checkpoints, and its folder made anew."""
    job = build(JOBS[verb], {**values, "run": str(folder)})
    if not isinstance(job, TrainingJob) or not job.trainer.checkpoint_url:
        return False
    from fm.data.store import access_of
    from fm.engine.places import restore_run

    return restore_run(job.trainer.checkpoint_url, folder, access_of(job.data))


def _check_place(job: Any) -> None:
    """Refuse a new run that would save where another one does."""
    if not isinstance(job, TrainingJob) or not job.trainer.checkpoint_url:
        return
    from fm.data.store import access_of
    from fm.engine.places import holds_run

    if holds_run(job.trainer.checkpoint_url, access_of(job.data)):
        raise ConfigError(f"trainer.checkpoint_url={job.trainer.checkpoint_url} holds another run: name a new place")


def _default_folder(request: Request) -> Path:
    experiment = request.chosen("experiment") or request.verb
    return Path("runs") / str(experiment) / datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


def _resume(request: Request, folder: Path) -> Any:
    current = _current(request.verb, folder)
    if request.chosen("experiment") is not None:
        return _go_on(request.verb, folder, compose.compose_values(request), request)
    return _go_on(request.verb, folder, _changed(request, current), request)


def _go_on(verb: str, folder: Path, values: Plain, request: Request | None) -> Any:
    """Record an attempt of an existing run with `values`, if they differ from it only where an attempt may."""
    facts, stored = read(folder / RUN_FILE)
    here = {name: None for name in PLACE_KEYS if name in registry.keys(JOBS[verb])}
    first, latest, job = (
        build(JOBS[verb], {**version, **here}) for version in (stored, _current(verb, folder), values)
    )
    if wrong := [item for item in difference(latest, job).items() if not _may_change(item[0])]:
        text = "; ".join(f"{key} is {old} there, {new} here" for key, (old, new) in wrong[:4])
        raise ConfigError(f"run={folder} holds another run: {text}; name a new folder, or give run= alone to resume")
    _check_dataset(facts, job, folder)
    _record(folder, {key: new for key, (_, new) in difference(first, job).items()}, request)
    job.run = str(folder)
    return job


def _check_dataset(facts: Plain, job: Any, folder: Path) -> None:
    """Refuse to go on with other data than the run began with, unless ``data.accept`` names what is there now."""
    before, now = facts.get("dataset_id"), _dataset_id(job)
    if before is not None and now != before and now != job.data.accept:
        raise ConfigError(
            f"run={folder} began on dataset {before}, but {job.data.url} now holds {now}; "
            f"give data.accept={now} to go on with it"
        )


def _may_change(key: str) -> bool:
    return key in MAY_CHANGE_KEYS or (key.startswith(MAY_CHANGE) and key not in NEVER_CHANGE)


def _changed(request: Request, values: Plain) -> Plain:
    """Values of a stored run with the request's overrides: whole sections for groups, then single keys."""
    groups = [item.key for item in request.overrides if item.group]
    if "experiment" in groups:
        raise ConfigError("experiment= cannot be changed on a stored run; start a new one without from_run")
    if groups:
        chosen = replace(request, overrides=[item for item in request.overrides if item.group])
        composed = compose.compose_values(chosen)
        values = {**values, **{name: composed[name] for name in groups}}
    compose.apply(values, request.overrides)
    return values


def _current(verb: str, folder: Path) -> Plain:
    """Values of a run as its newest attempt has them."""
    facts, values = read(folder / RUN_FILE)
    if facts.get("verb") != verb:
        raise ConfigError(f"{folder} is a run of fm {facts.get('verb')}, not of fm {verb}; name another folder")
    lines = attempts(folder)
    changes: Plain = lines[-1]["changes"] if lines else {}
    compose.apply(values, [Override(key, value) for key, value in changes.items()])
    return values


def attempts(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's attempts, oldest first; a line cut short by a crash is left out."""
    path = folder / ATTEMPTS
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def _record(folder: Path, changes: Plain, request: Request | None) -> None:
    entry = {
        "attempt": len(attempts(folder)) + 1,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "overrides": [str(item) for item in request.overrides] if request is not None else [],
        "changes": changes,
    }
    path = folder / ATTEMPTS
    torn = path.is_file() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if torn else "") + json.dumps(entry, ensure_ascii=False) + "\n")


def _facts(verb: str, job: Any) -> dict[str, Any]:
    facts = {"verb": verb, "time": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit()}
    if (found := _dataset_id(job)) is not None:
        facts["dataset_id"] = found
    if isinstance(job, TrainingJob) and job.from_run is not None:
        facts["from_run"] = job.from_run
    return facts


def _dataset_id(job: Any) -> str | None:
    """Id of the dataset that a job reads; None for a job that reads none, or writes its own.

    Raises:
        DatasetError: there is no usable dataset at ``data.url``.
    """
    data = getattr(job, "data", None)
    if not isinstance(data, DataConfig) or not data.url:
        return None
    from fm.data.index import Manifest
    from fm.data.store import access_of

    return Manifest.open(data.url, access_of(data)).dataset_id


def commit() -> str:
    """The commit of the clone, with ``+changes`` where tracked files differ from it; ``unknown`` without git."""
    clone = registry.CONFIGS.parent
    if (packed := clone / COMMIT).is_file():
        return packed.read_text(encoding="utf-8").strip()
    try:
        head = _git(clone, "rev-parse", "HEAD")
        return head + ("+changes" if _git(clone, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(clone: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(clone), *words], capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip()
