"""``fm demo``: phantom (or one's own DICOM), prepare, pretrain, evaluate, each once, in one folder."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from data_prep.keys import default_key_file
from fm.config.errors import UserError
from fm.config.jobs.datasets import PhantomJob, PrepareJob
from fm.config.jobs.demo import DemoJob
from fm.config.jobs.evaluation import EvaluateJob
from fm.config.jobs.training import PretrainJob
from fm.config.load import plain
from fm.data.index import Manifest
from launch import runs

MARKERS = "stages"


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the demo."""

    name: str
    job: Callable[[], Any]
    """Made when the stage begins, because it may depend on what the stage before wrote."""
    folder: Path
    """What the stage writes."""
    has_run: bool = False
    """Whether the folder is a run folder of its own."""


class WithoutNext(io.TextIOBase):
    """Passes lines on but those that name a next command: within the demo the next stage follows by itself."""

    def __init__(self, target: TextIO) -> None:
        self._target = target
        self._line = ""

    def write(self, text: str) -> int:
        """Pass on whole lines, and the rest as soon as it can be no such line."""
        *lines, rest = (self._line + text).split("\n")
        kept = "".join(f"{line}\n" for line in lines if not line.startswith("next: "))
        hold = rest.startswith("next: ") or "next: ".startswith(rest)
        self._target.write(kept + ("" if hold else rest))
        self._line = rest if hold else ""
        return len(text)

    def flush(self) -> None:
        """Flush what was passed on."""
        self._target.flush()

    def isatty(self) -> bool:
        """Whether the target is a terminal."""
        return self._target.isatty()

    def fileno(self) -> int:
        """The target's file, for child processes."""
        return self._target.fileno()


def run(job: DemoJob) -> int:
    """Do every stage that is not done yet and print the table of times; returns the exit code."""
    root = Path(str(job.run))
    times: list[tuple[Stage, float, bool]] = []
    stale = False
    for stage in stages(job, root):
        stage_job = stage.job()
        done = _finished(root, stage, stage_job)
        if done is not None and not stale:
            times.append((stage, done, True))
            continue
        stale = True
        print(f"\n== {stage.name}", flush=True)
        begin = time.monotonic()
        if (code := _execute(stage, stage_job)) != 0:
            print(f"stage {stage.name} ended with {code}; next: fm demo run={root} goes on where it stopped")
            return code
        seconds = time.monotonic() - begin
        _mark(root, stage, stage_job, seconds)
        times.append((stage, seconds, False))
    _print_table(times)
    print(f"report:  {root / 'evaluate' / 'report.html'}")
    print(f"results: {root / 'evaluate' / 'results.json'}")
    print(f"next: fm embed encoder={root / 'pretrain' / 'export'} input=SCAN.nii.gz out=embeddings.parquet")
    return 0


def stages(job: DemoJob, root: Path) -> list[Stage]:
    """The stages of a demo in its folder; one's own DICOM leaves the phantom out."""
    phantom, shards, pretrain = root / "phantom", root / "shards", root / "pretrain"
    own = job.input is not None
    simulated = PhantomJob(
        out=str(phantom), studies=job.studies, seed=job.seed, workers=job.workers, phantom=job.phantom
    )
    prepared = PrepareJob(
        input=job.input or str(phantom / "dicom"),
        reports=job.reports if own else str(phantom / "reports.csv"),
        labels=job.labels if own else str(phantom / "labels.csv"),
        out=str(shards),
        workers=job.workers,
        prepare=job.prepare,
    )
    data = replace(job.data, url=str(shards))
    evaluated = EvaluateJob(encoder=str(pretrain / "export"), data=data, suite=job.suite)
    first = [] if own else [Stage("phantom", lambda: simulated, phantom)]
    return [
        *first,
        Stage("prepare", lambda: prepared if own else _keyed(prepared, job.seed), shards),
        Stage("pretrain", lambda: _pretrain_job(job, str(shards)), pretrain, has_run=True),
        Stage("evaluate", lambda: evaluated, root / "evaluate", has_run=True),
    ]


def fit_batch(train_studies: int, global_batch_size: int, micro_batch_size: int) -> tuple[int, int]:
    """Global and micro batch size that a small training split can fill.

    One's own folder may hold fewer studies than one global batch: then the batch is the largest even number of them
    (one at least), so that two processes share it evenly, and the micro-batch the largest that divides one's half.
    """
    if train_studies >= global_batch_size:
        return global_batch_size, micro_batch_size
    size = train_studies - train_studies % 2 if train_studies > 1 else 1
    share = max(1, size // 2)
    return size, max(n for n in range(1, min(micro_batch_size, share) + 1) if share % n == 0)


def _keyed(job: PrepareJob, seed: int) -> PrepareJob:
    """The preparation of simulated studies, its key made from the seed: nobody is to be protected, and equal seeds
    then give equal splits."""
    key = default_key_file(job.out)
    if not job.prepare.key_file and not key.exists():
        key.parent.mkdir(parents=True, exist_ok=True)
        key.write_text(hashlib.sha256(f"phantom {seed}".encode()).hexdigest() + "\n", encoding="utf-8")
    return job


def _pretrain_job(job: DemoJob, url: str) -> PretrainJob:
    train = len(Manifest.open(url).select(split=job.data.split).samples)
    if train == 0:
        raise UserError(f"{url}: no study in the {job.data.split} split; give more, or a smaller prepare.test_fraction")
    size, micro = fit_batch(train, job.data.global_batch_size, job.data.micro_batch_size)
    return PretrainJob(
        seed=job.seed,
        max_steps=job.max_steps,
        data=replace(job.data, url=url, global_batch_size=size, micro_batch_size=micro),
        model=job.model,
        objective=job.objective,
        optim=job.optim,
        trainer=job.trainer,
        tracker=job.tracker,
        launch=job.launch,
        export=job.export,
    )


def _execute(stage: Stage, job: Any) -> int:
    module = importlib.import_module(f"launch.verbs.{stage.name}")
    with contextlib.redirect_stdout(WithoutNext(sys.stdout)):
        return int(module.run(runs.open_stage(stage.name, job, stage.folder) if stage.has_run else job))


def _finished(root: Path, stage: Stage, job: Any) -> float | None:
    """Seconds that a stage took when it was done with this very job; None where it still has to be done."""
    try:
        marker = json.loads((root / MARKERS / f"{stage.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return float(marker["seconds"]) if marker.get("job") == plain(job) and stage.folder.exists() else None


def _mark(root: Path, stage: Stage, job: Any, seconds: float) -> None:
    path = root / MARKERS / f"{stage.name}.json"
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps({"seconds": round(seconds, 1), "job": plain(job)}, indent=1), encoding="utf-8")
    partial.replace(path)


def _print_table(times: list[tuple[Stage, float, bool]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", "seconds", "in")
    for stage, seconds, earlier in times:
        table.add_row(stage.name, f"{seconds:.0f}" + (" (earlier)" if earlier else ""), str(stage.folder))
    table.add_section()
    table.add_row("all", f"{sum(seconds for _, seconds, _ in times):.0f}", "")
    Console().print(table)
