"""Plans a population and simulates it on several processes; deterministic, and it goes on where it was stopped."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data_prep.phantom.plan import StudyPlan, plan_population
from data_prep.phantom.sheet import draw_sheet
from data_prep.phantom.study import Atlases, build_atlases, make_study
from data_prep.phantom.volume import MASK_LABELS
from fm.config.errors import UserError
from fm.config.phantom import PhantomConfig

log = logging.getLogger(__name__)

VERSION = 1
"""Of the simulation: raised when the same seed would give other bytes."""


class PhantomError(UserError):
    """A phantom that cannot be written; the message is one line."""


@dataclass(kw_only=True, slots=True)
class PhantomSummary:
    """What a phantom holds."""

    out: Path
    studies: int
    patients: int
    heads: int
    lesions: int
    series: int
    files: int
    sheet: Path


def simulate(out: Path, studies: int, seed: int, config: PhantomConfig, workers: int) -> PhantomSummary:
    """Write a phantom: ``dicom/``, ``masks/``, ``reports.csv``, ``labels.csv``, ``truth.jsonl``, ``sheet.png``.

    The same seed and configuration give the same bytes, whatever `workers`; finished studies of a stopped run are
    kept, and ``phantom.json`` is written last.

    Args:
        out: folder to write; new, empty, or one in which the same phantom was begun.
        studies: number of visits.
        seed: of everything drawn.
        config: the population and its scanners.
        workers: processes; 1 simulates in this one.

    Raises:
        PhantomError: the folder holds something else, cannot be written, or a worker died.
    """
    if studies < 1 or workers < 1:
        raise PhantomError(f"phantom: studies={studies} and workers={workers} must be at least 1")
    if seed < 0:
        raise PhantomError(f"phantom: seed={seed} must not be negative")
    identity = _identity(studies, seed, config)
    with _disk_errors(out):
        finished = _claim(out, identity)
        if finished is not None:
            return _summary(out, finished)
        plans = plan_population(studies, seed, config)
        parts = out / ".parts"
        pending = [plan for plan in plans if not (parts / f"{plan.index}.json").exists()]
        if pending:
            _run(pending, out, seed, config, workers)
        return _finish(out, plans, identity)


def _identity(studies: int, seed: int, config: PhantomConfig) -> dict[str, Any]:
    values = {name: str(value) for name, value in asdict(config).items()}
    return {"phantom_version": VERSION, "studies": studies, "seed": seed, "config": values}


def _claim(out: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Make or take up the folder; returns ``phantom.json`` where it is finished."""
    done, begun = out / "phantom.json", out / ".parts" / "phantom.json"
    for path in (done, begun):
        if not path.exists():
            continue
        found = json.loads(path.read_text("utf-8"))
        if any(found.get(name) != value for name, value in identity.items()):
            raise PhantomError(
                f"phantom: {out} holds another phantom (studies={found.get('studies')}, seed={found.get('seed')}, or "
                "other settings): choose another out= or delete it"
            )
        return found if path == done else None
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PhantomError(f"phantom: {out} is not an empty folder: choose another out=")
    begun.parent.mkdir(parents=True)
    _write(begun, json.dumps(identity, indent=1))
    return None


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(text, "utf-8")
    draft.replace(path)


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise PhantomError(
            f"phantom: a worker process died in {out}, as a rule for lack of memory: run again with fewer workers; "
            "finished studies are kept"
        ) from None
    except OSError as err:
        why = "the disk is full" if err.errno == errno.ENOSPC else str(err.strerror or err)
        raise PhantomError(
            f"phantom: cannot write {out}: {why}: mend that and run again; finished studies are kept"
        ) from err


_WORKER: tuple[Atlases, Path, int, PhantomConfig] | None = None


def _start_worker(atlases: Atlases, out: Path, seed: int, config: PhantomConfig) -> None:
    global _WORKER
    _WORKER = (atlases, out, seed, config)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # Without this, workers of a killed parent would work off their queue and then wait for ever.
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(parent: int) -> None:
    multiprocessing.connection.wait([parent])
    os._exit(1)


def _work(plan: StudyPlan) -> int:
    """Make one study and leave its record in ``.parts``, the mark that it is whole."""
    assert _WORKER is not None
    atlases, out, seed, config = _WORKER
    record = make_study(plan, atlases, out, seed, config)
    _write(out / ".parts" / f"{plan.index}.json", json.dumps(record, ensure_ascii=False))
    return plan.index


def _run(pending: list[StudyPlan], out: Path, seed: int, config: PhantomConfig, workers: int) -> None:
    heads = any(plan.patient.head for plan in pending)
    trunks = any(not plan.patient.head for plan in pending)
    atlases = build_atlases(config.resolution, heads, trunks)
    arguments = (atlases, out, seed, config)
    with _progress(len(pending)) as advance:
        if workers == 1:
            _start_worker(*arguments)
            for plan in pending:
                _work(plan)
                advance()
            return
        with (
            _one_thread(),
            ProcessPoolExecutor(
                min(workers, len(pending)), multiprocessing.get_context("spawn"), _start_worker, arguments
            ) as pool,
        ):
            waiting: set[Future[int]] = {pool.submit(_work, plan) for plan in pending}
            try:
                while waiting:
                    ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in ready:
                        future.result()
                        advance()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


@contextmanager
def _one_thread() -> Iterator[None]:
    """Processes started here use one thread each: they are as many as the cores."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar on a terminal, else a line about every 10 s; yields the function to call after each study."""
    if sys.stderr.isatty():
        from rich.console import Console

        columns = (TextColumn("phantom"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("studies", total=total)
            yield lambda: bar.advance(task)
        return
    done, told = 0, time.monotonic()

    def advance() -> None:
        nonlocal done, told
        done += 1
        if time.monotonic() - told > 10 or done == total:
            told = time.monotonic()
            print(f"phantom: {done}/{total} studies", file=sys.stderr, flush=True)

    yield advance


def _finish(out: Path, plans: list[StudyPlan], identity: dict[str, Any]) -> PhantomSummary:
    """Join the studies' records into the tables, draw the sheet, and mark the phantom finished."""
    parts = out / ".parts"
    records = [json.loads((parts / f"{plan.index}.json").read_text("utf-8")) for plan in plans]
    _write_table(out / "labels.csv", [record["labels"] for record in records])
    reports = [
        {name: record["labels"][name] for name in ("study_uid", "accession", "patient_id")} | {"text": record["report"]}
        for record in records
    ]
    _write_table(out / "reports.csv", reports)
    truths = [json.dumps(record["truth"], ensure_ascii=False) for record in records]
    _write(out / "truth.jsonl", "\n".join(truths) + "\n")
    draw_sheet(out, records)
    truth_hash = hashlib.sha256((out / "truth.jsonl").read_bytes()).hexdigest()
    counts = {
        "patients": len({record["truth"]["patient_id"] for record in records}),
        "heads": sum(record["truth"]["region"] == "HEAD" for record in records),
        "lesions": sum(record["labels"]["lesion"] for record in records),
        "series": sum(len(record["truth"]["series"]) for record in records),
        "files": sum(series["files"] for record in records for series in record["truth"]["series"]),
    }
    whole = identity | counts | {"mask_labels": MASK_LABELS, "truth_sha256": truth_hash}
    _write(out / "phantom.json", json.dumps(whole, indent=1))
    shutil.rmtree(parts)
    log.info("phantom of %d studies, %d files in %s", len(plans), counts["files"], out)
    return _summary(out, whole)


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    draft = path.with_name(path.name + ".tmp")
    with draft.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    draft.replace(path)


def _summary(out: Path, whole: dict[str, Any]) -> PhantomSummary:
    return PhantomSummary(
        out=out,
        studies=whole["studies"],
        patients=whole["patients"],
        heads=whole["heads"],
        lesions=whole["lesions"],
        series=whole["series"],
        files=whole["files"],
        sheet=out / "sheet.png",
    )
