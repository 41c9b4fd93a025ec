"""``fm inspect``: what a dataset holds, in the terminal and as one page; with views=true, what the network sees."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fm.config.data import Place
from fm.config.jobs.datasets import InspectJob
from fm.config.model import VitTextConfig

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedTokenizerFast

    from fm.data.index import Manifest
    from fm.data.inspect.contents import Contents, Cross
    from fm.data.inspect.views import Sheet


def run(job: InspectJob) -> int:
    """Count, print, draw and write the page; returns the exit code."""
    from rich.console import Console
    from rich.progress import Progress

    from fm.data.index import Manifest
    from fm.data.inspect.contents import read_contents
    from fm.data.inspect.page import render, size, write_page
    from fm.data.store import access_of

    assert isinstance(job.model, VitTextConfig)
    manifest = Manifest.open(job.url, access_of(job.data))
    with Progress(transient=True) as progress:
        task = progress.add_task("studies", total=None)
        tokenizer = _tokenizer(job, job.model, manifest)
        found = read_contents(
            manifest,
            job.data.site_label,
            job.inspect.most_studies,
            tokenizer,
            lambda done, total: progress.update(task, completed=done, total=total),
        )
        sheets = _sheets(job, job.model, manifest, tokenizer) if job.views else []
    console = Console()
    for table in tables(found):
        console.print(table)
    if found.longest_text:
        print(
            f"reports longer than {found.longest_text} tokens: {found.reports_cut}, "
            f"{found.tokens_cut} of {sum(found.report_tokens)} tokens are not read"
        )
    for line in found.unreadable:
        print(f"could not be read: {line}")
    page = render(found, sheets, _told(job, job.model) if job.views else None)
    write_page(Path(job.out), page)
    print(f"page: {job.out} ({size(len(page.encode()))})")
    views = "" if job.views else f"\nnext: fm inspect url={job.url} views=true experiment=demo"
    print(f"{views or f'next: fm pretrain data.url={job.url} run=runs/first'}".lstrip())
    return 0


def tables(found: Contents) -> list[Table]:
    """The counts as tables for a terminal."""
    from fm.data.inspect.contents import label_rows
    from fm.data.inspect.page import size

    splits = _table("Splits", "split", "studies", "patients", "series", "label maps", "bytes")
    for name, s in found.splits.items():
        splits.add_row(name, str(s.studies), str(s.patients), str(s.series), str(s.labels), size(s.bytes))
    made = [splits]
    for title, cross in (
        ("Studies by region", found.regions),
        ("Studies by site", found.sites),
        ("Studies by sex", found.sexes),
        ("Series by contrast and plane", found.planes),
        ("Series by vendor and field strength", found.scanners),
    ):
        if cross:
            made.append(_cross(title, cross))
    if found.having:
        made.append(_cross("Studies of a region that have the contrast", found.having, found.regions))
    made.append(_numbers(found))
    sets = _table("Commonest sets of contrasts", "contrasts", "studies")
    for name, count in found.sets.most_common(8):
        sets.add_row(name, str(count))
    made.append(sets)
    if found.labels:
        labels = _table("Labels", "label", "studies", "values")
        for name, kind, total, counts in label_rows(found):
            words = ", ".join(f"{value}: {count}" for value, count in counts)
            labels.add_row(name, str(total), words if kind == "values" else f"({kind}) {words}")
        made.append(labels)
    if found.quarantine:
        made.append(_cross("Quarantined, by reason and kind", found.quarantine))
    return made


def _numbers(found: Contents) -> Table:
    """Least, median and largest of what has a unit."""
    import numpy as np

    table = _table("Per series, study and report", "", "least", "median", "largest")
    words = [count for counts in found.report_words.values() for count in counts]
    ages = [age for some in found.ages.values() for age in some]
    measured: dict[str, Any] = {
        "slice spacing, mm": [s for s, _, _ in found.spacing_mm],
        "in-plane spacing, mm": [s for _, s, _ in found.spacing_mm],
        "slices": [d for d, _, _ in found.shapes],
        "rows, H": [h for _, h, _ in found.shapes],
        "columns, W": [w for _, _, w in found.shapes],
        "missing slices": list(found.missing_slices.elements()),
        "series of a study": list(found.series_per_study.elements()),
        "age, years": ages,
        "words of a report": words,
        "tokens of a report": found.report_tokens,
    }
    for name, values in measured.items():
        if len(values):
            table.add_row(name, *(f"{value:.4g}" for value in (min(values), np.median(values), max(values))))
    return table


def _cross(title: str, cross: Cross, of: Cross | None = None) -> Table:
    """A cross table with the totals of its rows, or of those of another table."""
    rows: Counter[str] = Counter()
    columns: Counter[str] = Counter()
    for (_, column), count in cross.items():
        columns[column] += count
    for (row, _), count in (of or cross).items():
        rows[row] += count
    shown = [column for column, _ in columns.most_common(8)]
    table = _table(title, "", *shown, "all")
    for row, total in rows.most_common(12):
        table.add_row(row, *(str(cross.get((row, column), "")) for column in shown), str(total))
    return table


def _table(title: str, *headers: str) -> Table:
    from rich.table import Column, Table

    first, *rest = headers
    return Table(
        Column(first, overflow="fold"),
        *(Column(h, overflow="fold", justify="left" if h in ("values", "contrasts") else "right") for h in rest),
        title=title,
        title_justify="left",
    )


def _tokenizer(job: InspectJob, model: VitTextConfig, manifest: Manifest) -> PreTrainedTokenizerFast | None:
    """The one named, or the one that pretraining would make; None where no report could teach one."""
    from fm.data.tokenizer import load_tokenizer, train_tokenizer, training_reports

    if job.tokenizer:
        found = load_tokenizer(job.tokenizer)
        found.model_max_length = min(found.model_max_length, model.text_max_tokens)
        return found
    reports = list(training_reports(manifest.select(split=job.data.split)))
    if not reports:
        return None
    data = job.data
    return train_tokenizer(reports, data.vocabulary_size, data.min_patients_per_word, model.text_max_tokens)


def _sheets(
    job: InspectJob, model: VitTextConfig, manifest: Manifest, tokenizer: PreTrainedTokenizerFast | None
) -> list[Sheet]:
    from fm.config.errors import UserError
    from fm.data.inspect.views import draw_sheets
    from fm.data.reader import StudyReader
    from fm.data.tokenizer import train_tokenizer
    from fm.data.views import lattice_of

    chosen = manifest.select(split=job.data.split)
    if not len(chosen):
        raise UserError(f"data.split={job.data.split}: no study of {job.url} is in it; name another")
    d, h, w = model.patch_voxels
    lattice = lattice_of(job.data, (d, h, w))
    # Whole views are shown, whoever finishes them in training.
    data = replace(job.data, augment_on=Place.worker)
    reader = StudyReader(chosen, data, lattice, tokenizer or train_tokenizer([], 1, 1, 8), job.inspect.seed)
    return list(draw_sheets(reader, chosen, job.inspect.studies, job.inspect.visit, job.inspect.series))


def _told(job: InspectJob, model: VitTextConfig) -> dict[str, Any]:
    """What the sheets were drawn with."""
    data = job.data
    return {
        "patches (D, H, W), voxels": " × ".join(map(str, model.patch_voxels)),
        "sampled in-plane at, mm": data.spacing_mm,
        "thin slices averaged towards, mm": data.slice_spacing_mm,
        "least tissue of a token": data.min_tissue,
        "kept of global and local tokens": f"{data.global_keep:g} and {data.local_keep:g}",
        "cross-sequence": "on" if data.cross_sequence else "off",
        "seed": job.inspect.seed,
        "visit": job.inspect.visit,
    }
