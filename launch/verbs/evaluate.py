"""``fm evaluate``: a frozen encoder on held-out studies, beside its baselines, as table, JSON and HTML report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fm.config.jobs.evaluation import EvaluateJob

if TYPE_CHECKING:
    from rich.table import Table

    from evals.results import Results
    from fm.probes.bootstrap import Interval


def run(job: EvaluateJob) -> int:
    """Evaluate, print the verdicts and one line per task; returns the exit code."""
    from rich.console import Console

    from evals.progress import StageProgress
    from evals.suite import evaluate
    from fm.data.store import access_of

    run_dir = Path(str(job.run))
    with StageProgress() as progress:
        results = evaluate(Path(job.encoder), job.data.url, run_dir, job.suite, progress, access_of(job.data))
    console = Console()
    console.print(task_table(results))
    if results.retrieval:
        console.print(retrieval_table(results))
    for entry in results.skipped:
        print(f"not measured: {entry.name}: {entry.reason}")
    for bar in results.bars:
        verdict = {True: "met", False: "missed", None: "not measured"}[bar.met]
        value = "" if bar.value is None else f" {bar.value:.3f}"
        if bar.low is not None and bar.high is not None:
            value += f" ({bar.low:.3f} to {bar.high:.3f})"
        print(f"bar {bar.name}: {verdict}{value}; {bar.rule}, {bar.threshold:g}")
    if cut := results.dataset["texts_cut"]:
        print(f"{cut} reports were longer than the encoder reads: {results.dataset['text_tokens_cut']} tokens not read")
    print(f"report:  {run_dir / 'report.html'}")
    print(f"results: {run_dir / 'results.json'}")
    print(f"next: fm embed encoder={job.encoder} input=SCAN.nii.gz out=embeddings.parquet")
    return 0


def task_table(results: Results) -> Table:
    """AUROC of the linear probe: one row per task, one column per system."""
    from evals.results import SYSTEM_WORDS, System

    shown = [s for s in System if s is not System.CHANCE]
    table = _table("AUROC, linear probe", "task", "held out", *(SYSTEM_WORDS[s].lower() for s in shown))
    for task in results.tasks:
        scores = {s.system: s.auroc for s in task.scores if s.probe == "linear"}
        table.add_row(task.name, str(sum(task.test.values())), *(_cell(scores[s]) for s in shown))
    return table


def retrieval_table(results: Results) -> Table:
    """R@5: one row per gallery and direction, one column per system."""
    from evals.results import SYSTEM_WORDS, System

    table = _table("R@5; baselines through a map", "gallery", "size", *(SYSTEM_WORDS[s].lower() for s in System))
    for gallery in results.retrieval:
        # The encoder's own space and its map share a system; the own space comes first.
        scores = {s.system: s.recall["5"] for s in reversed(gallery.scores)}
        cells = [_cell(scores[s]) if s in scores else "" for s in System]
        table.add_row(f"{gallery.gallery}, {gallery.direction}", str(gallery.size), *cells)
    return table


def _cell(found: Interval) -> str:
    if found.low is None or found.high is None:
        return f"{found.value:.3f}"
    return f"{found.value:.3f} ({found.low:.3f}–{found.high:.3f})"


def _table(title: str, *headers: str) -> Table:
    """A table that folds what is too wide for the terminal: a cut interval says nothing."""
    from rich.table import Column, Table

    return Table(*(Column(header, overflow="fold") for header in headers), title=title)
