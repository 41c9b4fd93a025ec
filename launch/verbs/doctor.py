"""``fm doctor``: what this machine has, and what it lacks."""

from __future__ import annotations

from pathlib import Path

from fm.config.jobs.cluster import DoctorJob


def run(job: DoctorJob) -> int:
    """Print the facts of this machine; returns 1 where something is missing that everything needs."""
    from rich.console import Console
    from rich.table import Table

    from launch.preflight.checks import examine

    facts = examine(Path(job.folder))
    table = Table("", "found", "what to do")
    for fact in facts:
        table.add_row(fact.topic, fact.found, fact.advice, style="bold" if fact.needed else None)
    Console().print(table)
    broken = [fact.topic for fact in facts if fact.needed]
    if broken:
        print(f"missing: {', '.join(broken)}; next: make install")
        return 1
    print("next: fm demo run=runs/demo")
    return 0
