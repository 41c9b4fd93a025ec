"""``fm runs list`` and ``fm runs show``: the runs below a folder, and the story of one."""

from __future__ import annotations

from pathlib import Path

from fm.config.errors import UserError
from fm.config.jobs.training import RunsListJob, RunsShowJob
from fm.config.price import PriceConfig
from fm.engine.account import money, read_cost
from launch.runs import RUN_FILE
from launch.story import PARTS, Story, notices, read_story

NOTICES = 12
"""Lines of the events log that are shown."""


def run(job: RunsListJob | RunsShowJob) -> int:
    """List the runs below a folder, newest first, or show one; returns the exit code."""
    return _show(job) if isinstance(job, RunsShowJob) else _list(job)


def _list(job: RunsListJob) -> int:
    from rich.console import Console
    from rich.table import Column, Table

    root = Path(job.folder)
    if not root.is_dir():
        raise UserError(f"folder={root}: no such folder; runs lie in ./runs unless run=DIR said otherwise")
    found = sorted((read_story(f.parent) for f in root.rglob(RUN_FILE)), key=lambda story: story.started, reverse=True)
    table = Table(Column("run", overflow="fold"), "verb", "started (UTC)", "attempts", "state", "step", "loss")
    for story in found:
        loss = story.last.get("loss")
        table.add_row(
            str(story.folder),
            story.verb,
            story.started[:19],
            str(len(story.attempts)),
            story.state,
            str(story.last.get("step", "")),
            f"{loss:.4f}" if isinstance(loss, float) else "",
        )
    Console().print(table if found else f"no run below {root}")
    print(f"next: fm runs show from_run={found[0].folder}" if found else "next: fm demo run=runs/demo")
    return 0


def _show(job: RunsShowJob) -> int:
    from rich.console import Console

    folder = Path(job.from_run)
    if not (folder / RUN_FILE).is_file():
        raise UserError(f"from_run={folder}: no run there ({RUN_FILE} is missing); see fm runs list")
    story, console = read_story(folder), Console()
    step = f", step {story.last['step']} of {story.max_steps}" if story.last else ""
    lines = [f"run      {folder}", f"verb     fm {story.verb}", f"state    {story.state}{step}"]
    lines += [f"{name:<8} {story.facts[key]}" for name, key in _FACTS.items() if key in story.facts]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    console.print(_attempts(story))
    for text in (*_cost_lines(folder, job.price), *notices(folder, NOTICES)):
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    parts = [f"  {name:<15} {what}" for name, what in PARTS.items() if (folder / name).exists()]
    console.print("\n".join(["in the folder:", *parts]), markup=False, highlight=False, soft_wrap=True)
    print(f"next: {_next(story)}")
    return 0


_FACTS = {"dataset": "dataset_id", "commit": "commit", "repeats": "from_run"}
"""Word → key of ``about`` in run.yaml."""


def _attempts(story: Story) -> object:
    from rich.table import Column, Table

    table = Table("attempt", "started (UTC)", "steps", "hours", "outcome", "on", Column("changed", overflow="fold"))
    for attempt in story.attempts:
        code = [f"code={attempt.commit[:8]}"] if attempt.commit != story.facts.get("commit") else []
        table.add_row(
            attempt.name,
            attempt.started[5:16].replace("T", " "),
            f"{attempt.first_step}–{attempt.last_step}" if attempt.last_step else "",
            "" if attempt.hours is None else f"{attempt.hours:.2f}",
            attempt.outcome,
            attempt.place,
            " ".join([f"{key}={value}" for key, value in attempt.changes.items()] + code),
        )
    return table


def _cost_lines(folder: Path, price: PriceConfig) -> list[str]:
    total = read_cost(folder).get("total")
    if total is None:
        return []
    words = [f"{hours:.3g} {unit} hours" for unit, hours in total["device_hours"].items()]
    for name, unit in (
        ("cpu_hours", "processor hours used"),
        ("gpu_kwh", "kWh of GPUs"),
        ("package_kwh", "kWh of processors"),
        ("peak_host_gb", "GiB at most in a rank"),
        ("peak_device_gb", "GiB at most on a GPU"),
    ):
        if total[name] is not None:
            words.append(f"{total[name]:.3g} {unit}")
    missing = "; ".join(f"{name}: {why}" for name, why in total["not_measured"].items())
    priced = [
        f"{money_of:.2f} {words_of}"
        for money_of, words_of in (
            (money(total, gpu_hour=price.gpu_hour), f"on demand at {price.gpu_hour:g} a GPU hour"),
            (money(total, gpu_hour=price.spot_gpu_hour), f"spot at {price.spot_gpu_hour:g} a GPU hour"),
            (money(total, kwh=price.kwh), f"for the measured electricity at {price.kwh:g} a kWh"),
        )
        if money_of
    ]
    lines = [f"cost     {', '.join(words)}"]
    lines += [f"price    {'; '.join(priced)}"] if priced else []
    return [*lines, *([f"         not measured: {missing}"] if missing else [])]


def _next(story: Story) -> str:
    if story.state == "done" and story.verb == "pretrain":
        return f"fm evaluate encoder={story.folder / 'export'} data.url=URL"
    return "fm runs list" if story.state in ("done", "running") else f"fm {story.verb} run={story.folder}"
