"""``prepare``: a folder of hospital DICOM and its reports become a dataset of de-identified, verified shards."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from data_prep.beside import SUMMARY, next_number
from data_prep.bias import require_n4
from data_prep.catalogue import Catalogue
from data_prep.convert import converter
from data_prep.deface import require_decision
from data_prep.headers import silence_pydicom
from data_prep.inventory import kind_of, take_inventory
from data_prep.keys import Restricted, default_key_file, open_keyring
from data_prep.ledger import NO_SPACE, Reason
from data_prep.persons import read_persons
from data_prep.pool import Workers, open_workers
from data_prep.publication import publish_dataset
from data_prep.remote import is_url
from data_prep.shards import ShardBuilder, ShardStore
from data_prep.side_inputs import check_side_inputs, read_side_inputs
from data_prep.sources import private_folder
from data_prep.splits import site_of
from data_prep.study import StudyJob, guarded_study, lost_study
from data_prep.summary import PrepareSummary
from data_prep.tables import label_values
from data_prep.task import VERSION, Inputs, Plan, fingerprint, hash_settings, make_plan
from fm.config.errors import UserError
from fm.config.prepare import PrepareConfig, UnknownReports
from fm.data.index import MANIFEST, Manifest, open_store


def prepare(
    input: str, reports: str | None, labels: str | None, out: str, config: PrepareConfig, workers: int
) -> PrepareSummary:
    """Prepare a folder of DICOM; run again with the same arguments it goes on where it stopped, or returns at once.

    Where `out` holds a dataset of the same settings and key already, the studies that are new are appended to it.

    The dataset in `out` (shards, ``samples.parquet``, ``manifest.json``, ``ledger.jsonl``, ``quarantine.jsonl``,
    ``prepare.json``) holds keyed ids only. The secret key, the headers that were read and the table from ids to paths
    lie outside it, readable by their owner alone.

    Args:
        input: folder or its URL, searched through all subfolders and zip archives; one zip archive; a DICOMDIR; or a
            local tree of NIfTI files (prepare.source).
        reports: table with study_uid or accession, patient_id, text; folder of text files or of DICOM structured
            reports (prepare.report_source); None: images only.
        labels: table with study_uid, series_uid or accession, and the columns of `config.labels`; None: none.
        out: folder or URL of the dataset.
        config: how to prepare.
        workers: processes, or Slurm jobs.

    Raises:
        UserError: no DICOM, a missing file, nothing that could be used, a full disk, `out` holds another dataset, or
            (after the dataset is finished) reports for unknown studies under prepare.unknown_reports=refuse.
    """
    silence_pydicom()
    binary = converter()
    source = input.removeprefix("file://")
    _check(source, reports, labels, out, config)
    key_file = Path(config.key_file) if config.key_file else default_key_file(out)
    keyring = open_keyring(key_file, out)
    restricted = Restricted(key_file, keyring.item(out)[:8])
    restricted.refuse_pending()
    persons = read_persons(config.link_file, config.site)
    kind = kind_of(source, config.source)
    with (
        closing(Catalogue(restricted.catalogue, f"{kind.value} {VERSION}", keyring)) as catalogue,
        private_folder(restricted.unpacked) as scratch,
        open_workers(config, workers, restricted.cluster) as pool,
        _progress() as bar,
    ):
        task = bar.add_task("reading headers", total=None)
        inventory = take_inventory(source, kind, scratch, catalogue, pool, lambda files: bar.advance(task, files))
        bar.update(task, total=inventory.files, completed=inventory.files)
        settings = hash_settings(config, keyring)
        beside = (reports, labels, config.masks or None, config.brain_masks or None)
        inputs = Inputs(
            out=out,
            source=source,
            config=config,
            keyring=keyring,
            restricted=restricted,
            catalogue=catalogue,
            inventory=inventory,
            side=read_side_inputs(reports, labels, inventory.studies, keyring, persons, config),
            persons=persons,
            settings=settings,
            fingerprint=fingerprint(catalogue, beside, settings, keyring),
        )
        require_decision(inventory.studies, config)
        base = _base(inputs)
        summary = _standing(inputs, base) or _make(inputs, base, binary, pool, bar)
    if config.unknown_reports == UnknownReports.refuse:
        _refuse_unknown(summary.unknown_reports, out)
    return summary


def _check(source: str, reports: str | None, labels: str | None, out: str, config: PrepareConfig) -> None:
    """Refuse what cannot work before anything is read."""
    if not is_url(source) and not os.path.exists(source):
        raise UserError(f"input={source} is not a folder, a zip archive or a DICOMDIR: it does not exist")
    check_side_inputs(reports, labels, config)
    open_store(out)
    if config.n4:
        require_n4()


def _refuse_unknown(rows: Sequence[int], out: str) -> None:
    if rows:
        raise UserError(
            f"{len(rows)} of the reports name a study that is not in the input (first: row {rows[0]}); {out} is "
            "finished without them: mend the file and choose a new out, or set prepare.unknown_reports=allow"
        )


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())


def _base(inputs: Inputs) -> Manifest | None:
    """The dataset that stands in `out`.

    Raises:
        UserError: it was made with another key, other settings or another version.
    """
    fs, root = open_store(inputs.out)
    fs.invalidate_cache()
    if not fs.exists(f"{root}/{MANIFEST}"):
        return None
    manifest = Manifest.open(inputs.out)
    if manifest.versions.get("settings") != inputs.settings:
        raise UserError(
            f"out={inputs.out} holds another dataset ({manifest.dataset_id}), made with another key or other settings; "
            "choose a new folder, or remove that one"
        )
    return manifest


def _standing(inputs: Inputs, base: Manifest | None) -> PrepareSummary | None:
    """The summary of a finished run of the same inputs; None where there is something to do."""
    if base is None or base.versions.get("input") != inputs.fingerprint:
        return None
    print(f"{inputs.out} is already prepared", file=sys.stderr)
    return _summary_of(inputs)


def _summary_of(inputs: Inputs) -> PrepareSummary:
    fs, root = open_store(inputs.out)
    return PrepareSummary.from_json(fs.cat_file(f"{root}/{SUMMARY}"), inputs.out, str(inputs.restricted.links))


def _make(inputs: Inputs, base: Manifest | None, binary: str, pool: Workers, bar: Progress) -> PrepareSummary:
    """Convert, shard and publish."""
    plan = make_plan(inputs, base)
    if base is not None and not plan.new:
        if plan.changed:
            raise UserError(
                f"out={inputs.out} holds all studies of the input already, {plan.changed} of them from other files, "
                "reports or labels: what stands is not changed; choose a new out"
            )
        print(f"{inputs.out} holds all studies of the input already", file=sys.stderr)
        return _summary_of(inputs)
    fs, root = open_store(inputs.out)
    work = Path(root) / ".work" if "file" in fs.protocol else inputs.restricted.work
    mark = (inputs.fingerprint, "" if base is None else base.dataset_id, *sorted(inputs.restricted.withdrawn()))
    store = ShardStore(
        inputs.out,
        work,
        inputs.keyring.digest("work", *mark),
        first=0 if base is None else next_number(base.shards),
    )
    try:
        _convert_all(store, inputs, plan, binary, pool, bar)
        summary = publish_dataset(store, inputs, plan)
    except OSError as err:
        if err.errno in NO_SPACE:
            raise UserError(store.full()) from err
        raise
    shutil.rmtree(work)
    return summary


def _jobs(
    inputs: Inputs, plan: Plan, done: set[str], binary: str, under_way: deque[tuple[int, str]]
) -> Iterator[StudyJob]:
    """The studies that no finished shard accounts for, in key order; `under_way` gets their files and sources."""
    side = inputs.side
    for key, uid in plan.new:
        if key in done:
            continue
        headers = inputs.inventory.studies[uid]
        report = side.reports.by_study.get(uid)
        series = {header.series_uid for header in headers}
        under_way.append((len(headers), inputs.study_source(uid, headers)))
        yield StudyJob(
            key=key,
            patient=inputs.persons.pseudonym(headers, inputs.keyring),
            headers=headers,
            report=None if report is None else report["text"],
            report_item=side.reports.items.get(uid, ""),
            labels=label_values(side.labels.by_study.get(uid, {}), inputs.config.labels)[0],
            site=inputs.keyring.site(site_of(headers, inputs.config.site)),
            keyring=inputs.keyring,
            config=inputs.config,
            binary=binary,
            series_labels=side.series_labels(series, inputs.config.labels),
            masks=side.masks.of(series),
            brain_masks=side.brain_masks.of(series),
        )


def _convert_all(store: ShardStore, inputs: Inputs, plan: Plan, binary: str, pool: Workers, bar: Progress) -> None:
    """Process the studies that no finished shard accounts for."""
    done = store.resume()
    if done:
        print(f"going on after {len(done)} studies in {len(store.shards)} finished shards", file=sys.stderr)
    builder = ShardBuilder(store, inputs.config.shard_mib * 2**20)
    task = bar.add_task("converting studies", total=len(plan.new), completed=len(done))
    told = time.monotonic()
    under_way: deque[tuple[int, str]] = deque()
    jobs = _jobs(inputs, plan, done, binary, under_way)
    for result in pool.ordered(guarded_study, jobs, partial(lost_study, reason=Reason.WORKER_DIED)):
        files, source = under_way.popleft()
        if result.tally.files != files:
            raise AssertionError(f"{files} files of a study went in, {result.tally.files} are accounted for")
        builder.add(result, source)
        bar.advance(task)
        if bar.disable and time.monotonic() - told > 10:
            told = time.monotonic()
            print(f"converted {int(bar.tasks[task].completed)} of {len(plan.new)} studies", file=sys.stderr, flush=True)
    builder.finish()
