"""What a run folder says of itself: its state, and what became of each attempt."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fm.config.errors import ConfigError
from fm.config.load import read
from fm.engine.account import COST, read_cost
from fm.engine.failures import ERRORS
from fm.engine.metrics import Row, read_metrics
from fm.engine.verdict import Outcome, read_verdicts
from launch.events import NAME as EVENTS
from launch.runs import ATTEMPTS, RUN_FILE, attempts

METRICS = "metrics.jsonl"
ENVIRONMENT = "environment"
ALIVE_SECONDS = 60.0
"""A run whose newest sign of life is younger is taken to be running; a training one gives a sign every few seconds."""
_WORDS = {Outcome.DONE: "done", Outcome.REQUEUE: "stopped and saved", Outcome.FAILED: "failed"}
_RECORD = re.compile(r"^\S+ (\S+?)(?:,\d+)? (?:WARNING|ERROR|INFO) rank 0 fm\.(?:engine|pretrain|adapt)[.\w]*: (.+)")
_FINISHED = {"demo": "evaluate/report.html", "evaluate": "report.html"}
"""What a verb without verdicts writes last."""
PARTS = {
    RUN_FILE: "configuration, commit, dataset",
    ATTEMPTS: "every start, with what it changed",
    METRICS: "a row per step",
    EVENTS: "what happened, with tracebacks",
    "skipped.jsonl": "samples of skipped steps",
    COST: "hours, energy and memory per attempt",
    ENVIRONMENT: "packages, driver, topology per attempt",
    ERRORS: "what ended a rank",
    "stacks": "stacks of a run that hung",
    "profile": "Chrome traces",
    "checkpoints": "fm checkpoint list",
    "export": "the encoder",
    "wandb": "Weights & Biases, offline",
    "tensorboard": "tensorboard --logdir",
}
"""Parts of a run folder, in the order in which they are read."""


@dataclass(kw_only=True, slots=True)
class Attempt:
    """One attempt of a run."""

    name: str
    started: str
    commit: str
    changes: dict[str, Any]
    outcome: str
    first_step: int = 0
    last_step: int = 0
    hours: float | None = None
    place: str = ""
    """What it ran on."""


@dataclass(kw_only=True, slots=True)
class Story:
    """A run as its folder tells it."""

    folder: Path
    verb: str
    started: str
    facts: dict[str, Any] = field(default_factory=dict)
    state: str = ""
    last: Row = field(default_factory=dict)
    """The newest row of metrics."""
    max_steps: int | None = None
    attempts: list[Attempt] = field(default_factory=list)


def read_story(folder: Path) -> Story:
    """What a run folder's own files say; a folder whose ``run.yaml`` cannot be read is ``unreadable``."""
    try:
        facts, values = read(folder / RUN_FILE)
    except ConfigError:
        return Story(folder=folder, verb="unreadable", started="", state="unreadable")
    rows = read_metrics(folder / METRICS) if (folder / METRICS).is_file() else []
    records = attempts(folder)
    verdicts, costs = read_verdicts(folder), {c["attempt"]: c for c in read_cost(folder).get("attempts", [])}
    told = []
    for record in records:
        name = str(record["attempt"])
        cost, verdict = costs.get(name, {}), verdicts.get(name)
        if verdict is not None:
            outcome = _WORDS[verdict.outcome]
        else:
            outcome = _without_verdict(folder, str(facts.get("verb")), record, newest=record is records[-1])
        told.append(
            Attempt(
                name=name,
                started=str(record.get("time", ""))[:19],
                commit=str(record.get("commit", "")),
                changes=record.get("changes", {}),
                outcome=outcome,
                first_step=cost.get("first_step", 0),
                last_step=cost.get("step", 0),
                hours=cost["wall_s"] / 3600 if cost else None,
                place=_place(folder, name),
            )
        )
    limits = [record["changes"]["max_steps"] for record in records if "max_steps" in record.get("changes", {})]
    return Story(
        folder=folder,
        verb=str(facts.get("verb", "unreadable")),
        started=str(facts.get("time", "")),
        facts=facts,
        state=told[-1].outcome if told else "not started",
        last=rows[-1] if rows else {},
        max_steps=limits[-1] if limits else values.get("max_steps"),
        attempts=told,
    )


def notices(folder: Path, count: int) -> list[str]:
    """The last things that rank 0 had to say: resumes, saves, skipped steps, slow ranks; with their time (UTC or the
    machine's own)."""
    path = folder / EVENTS
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return [f"{found[1]}  {found[2]}" for line in lines if (found := _RECORD.match(line))][-count:]


def _without_verdict(folder: Path, verb: str, record: dict[str, Any], *, newest: bool) -> str:
    name = record["attempt"]
    if any((folder / ERRORS).glob(f"attempt-{name}-rank-*.json")):
        return "failed"
    if (final := _FINISHED.get(verb)) and newest and (folder / final).is_file():
        return "done"
    return "running" if newest and _last_sign(folder, record) > time.time() - ALIVE_SECONDS else "killed"


def _last_sign(folder: Path, record: dict[str, Any]) -> float:
    cost = folder / COST / f"attempt-{record['attempt']}.json"
    try:
        began = datetime.fromisoformat(str(record.get("time"))).astimezone(UTC).timestamp()
    except ValueError:
        began = 0.0
    return max(began, cost.stat().st_mtime if cost.is_file() else 0.0)


def _place(folder: Path, attempt: str) -> str:
    try:
        facts = json.loads((folder / ENVIRONMENT / f"attempt-{attempt}.json").read_text(encoding="utf-8"))
        ranks = facts["ranks"]
        device = ranks[0].get("gpu") or f"CPU, {ranks[0]['threads']} threads"
    except (OSError, ValueError, KeyError, IndexError):
        return ""
    return f"{len(ranks)} × {device}"
