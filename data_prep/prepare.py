"""``prepare``: a folder of hospital DICOM and its reports become a dataset of de-identified, verified shards."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from data_prep import deid
from data_prep.convert import converter
from data_prep.deface import confidentiality_options, require_decision
from data_prep.headers import Header, silence_pydicom
from data_prep.inventory import Inventory, take_inventory
from data_prep.keys import Keyring, default_key_file, is_placeholder, open_keyring, write_link_table
from data_prep.ledger import NO_SPACE, Entry, Reason, Tally
from data_prep.persons import Persons, read_persons
from data_prep.pool import Workers
from data_prep.shards import ShardBuilder, ShardStore
from data_prep.side_inputs import PATHS, SideInputs, check_side_inputs, explain, read_side_inputs
from data_prep.sources import private_folder
from data_prep.study import StudyJob, guarded_study, lost_study
from data_prep.summary import PrepareSummary, count_reasons
from data_prep.tables import file_hash, label_values
from fm.config.errors import UserError
from fm.config.prepare import PrepareConfig, UnknownReports
from fm.data.index import MANIFEST, Manifest, dataset_hash, open_store, publish, write_index

VERSION = "2"
"""Version of the preparation; recorded in the manifest."""
SUMMARY = "prepare.json"
QUARANTINE = "quarantine.jsonl"
log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class _Inputs:
    """Everything one preparation works with."""

    out: str
    config: PrepareConfig
    keyring: Keyring
    key_file: Path
    inventory: Inventory
    side: SideInputs
    persons: Persons
    fingerprint: str

    @property
    def link_table(self) -> Path:
        """The restricted table, beside the key."""
        return self.key_file.with_name(f"{self.key_file.name}-links-{self.keyring.item(self.out)[:8]}.csv")

    def patient(self, headers: Sequence[Header]) -> str:
        """Pseudonym of a study's patient."""
        return self.persons.pseudonym(headers, self.keyring)


def prepare(
    input: str, reports: str | None, labels: str | None, out: str, config: PrepareConfig, workers: int
) -> PrepareSummary:
    """Prepare a folder of DICOM; run again with the same arguments it goes on where it stopped, or returns at once.

    The dataset in `out` (shards, ``samples.parquet``, ``manifest.json``, ``quarantine.jsonl``, ``prepare.json``) holds
    keyed ids only. The secret key and the table from ids to paths lie outside it, readable by their owner alone.

    Args:
        input: local folder, searched through all subfolders and zip archives; one zip archive; a
            DICOMDIR; or a tree of NIfTI files (prepare.source).
        reports: table with study_uid or accession, patient_id, text; folder of text files or of DICOM structured
            reports (prepare.report_source); None: images only.
        labels: table with study_uid, series_uid or accession, and the columns of `config.labels`; None: none.
        out: folder or URL of the dataset.
        config: how to prepare.
        workers: processes.

    Raises:
        UserError: no DICOM, a missing file, nothing that could be used, a full disk, `out` holds another dataset, or
            (after the dataset is finished) reports for unknown studies under prepare.unknown_reports=refuse.
    """
    silence_pydicom()
    binary = converter()
    if not os.path.exists(input):
        raise UserError(f"input={input} is not a folder, a zip archive or a DICOMDIR: it does not exist")
    check_side_inputs(reports, labels, config)
    open_store(out)
    key_file = Path(config.key_file) if config.key_file else default_key_file(out)
    keyring = open_keyring(key_file, out)
    persons = read_persons(config.link_file, config.site)
    unpacked = key_file.with_name(f"{key_file.name}-unpacked-{keyring.item(out)[:8]}")
    with (
        private_folder(unpacked) as scratch,
        Workers(workers, config.memory_limit_gib) as pool,
        _progress() as bar,
    ):
        task = bar.add_task("reading headers", total=None)
        inventory = take_inventory(input, config.source, scratch, keyring, pool, lambda files: bar.advance(task, files))
        bar.update(task, total=inventory.files, completed=inventory.files)
        inputs = _Inputs(
            out=out,
            config=config,
            keyring=keyring,
            key_file=key_file,
            inventory=inventory,
            side=read_side_inputs(reports, labels, inventory.studies, keyring, persons, config),
            persons=persons,
            fingerprint=_fingerprint(inventory, reports, labels, config, keyring),
        )
        require_decision(inventory.studies, config)
        summary = _finished(inputs) or _make(inputs, binary, pool, bar)
    if summary.unknown_reports and config.unknown_reports == UnknownReports.refuse:
        raise UserError(
            f"{len(summary.unknown_reports)} of the reports name a study that is not in the input (first: row "
            f"{summary.unknown_reports[0]}); {out} is finished without them: mend the file and choose a new out, or "
            "set prepare.unknown_reports=allow"
        )
    return summary


def split_patients(patients: Sequence[str], fraction: float, seed: int, keyring: Keyring) -> dict[str, str]:
    """'test' for the first share of the patients in keyed order, 'train' for the rest.

    The share is met exactly (rounded; at least one patient on each side where there are two and a share is wanted),
    and the order depends on key, seed and pseudonyms alone.
    """
    order = sorted(set(patients), key=lambda patient: keyring.digest("split", str(seed), patient))
    held = round(fraction * len(order))
    if fraction > 0 and len(order) > 1:
        held = min(max(held, 1), len(order) - 1)
    return {patient: "test" if rank < held else "train" for rank, patient in enumerate(order)}


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())


def _fingerprint(
    inventory: Inventory, reports: str | None, labels: str | None, config: PrepareConfig, keyring: Keyring
) -> str:
    """Keyed hash of everything that decides the output; the state of another fingerprint is not continued."""
    digest = hashlib.sha256()
    for _, headers in sorted(inventory.studies.items()):
        for header in headers:
            status = os.stat(header.path)
            name = inventory.names[header.path]
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    settings = asdict(config)
    for irrelevant in ("key_file", "memory_limit_gib", "convert_timeout_s", "unknown_reports"):
        settings.pop(irrelevant)
    # what a path holds decides, not where it lies
    paths = [settings.pop(name) or None for name in PATHS]
    hashes = (file_hash(path) for path in (reports, labels, *paths))
    parts = (digest.hexdigest(), *hashes, json.dumps(settings, sort_keys=True), VERSION, deid.VERSION)
    return keyring.digest("fingerprint", *parts)


def _finished(inputs: _Inputs) -> PrepareSummary | None:
    """The summary of a finished run of the same inputs and settings; None where `out` is free or unfinished."""
    fs, root = open_store(inputs.out)
    if not fs.exists(f"{root}/{MANIFEST}"):
        return None
    manifest = Manifest.open(inputs.out)
    if manifest.versions.get("input") != inputs.fingerprint:
        raise UserError(
            f"out={inputs.out} holds another dataset ({manifest.dataset_id}); choose a new folder, or remove that one"
        )
    log.info("%s is already prepared", inputs.out)
    return PrepareSummary.from_json(fs.cat_file(f"{root}/{SUMMARY}"), inputs.out, str(inputs.link_table))


def _make(inputs: _Inputs, binary: str, pool: Workers, bar: Progress) -> PrepareSummary:
    """Convert, shard and publish."""
    fs, root = open_store(inputs.out)
    if "file" in fs.protocol:
        work = Path(root) / ".work"
    else:
        work = inputs.key_file.with_name(f"{inputs.key_file.name}-work-{inputs.keyring.item(inputs.out)[:8]}")
    store = ShardStore(inputs.out, work, inputs.fingerprint)
    try:
        _convert_all(store, _jobs(inputs, binary), pool, inputs.config, bar)
        summary = _publish(store, inputs)
    except OSError as err:
        if err.errno in NO_SPACE:
            raise UserError(store.full()) from err
        raise
    shutil.rmtree(work)
    return summary


def _jobs(inputs: _Inputs, binary: str) -> dict[str, StudyJob]:
    """Jobs by study key, in key order."""
    jobs: dict[str, StudyJob] = {}
    side = inputs.side
    for uid, headers in inputs.inventory.studies.items():
        report = side.reports.by_study.get(uid)
        series = {header.series_uid for header in headers}
        key = inputs.keyring.study(uid)
        jobs[key] = StudyJob(
            key=key,
            patient=inputs.patient(headers),
            headers=headers,
            report=None if report is None else report["text"],
            report_item=side.reports.items.get(uid, ""),
            labels=label_values(side.labels.by_study.get(uid, {}), inputs.config.labels)[0],
            keyring=inputs.keyring,
            config=inputs.config,
            binary=binary,
            series_labels=side.series_labels(series, inputs.config.labels),
            masks=side.masks.of(series),
            brain_masks=side.brain_masks.of(series),
        )
    return dict(sorted(jobs.items()))


def _convert_all(
    store: ShardStore, jobs: Mapping[str, StudyJob], pool: Workers, config: PrepareConfig, bar: Progress
) -> None:
    """Process the studies that no finished shard accounts for."""
    done = store.resume()
    open_jobs = [job for key, job in jobs.items() if key not in done]
    if done:
        print(f"going on after {len(done)} studies in {len(store.shards)} finished shards", file=sys.stderr)
    builder = ShardBuilder(store, config.shard_mib * 2**20)
    task = bar.add_task("converting studies", total=len(jobs), completed=len(jobs) - len(open_jobs))
    told = time.monotonic()
    for result in pool.ordered(guarded_study, open_jobs, partial(lost_study, reason=Reason.WORKER_DIED)):
        builder.add(result)
        bar.advance(task)
        if bar.disable and time.monotonic() - told > 10:
            told = time.monotonic()
            print(f"converted {int(bar.tasks[task].completed)} of {len(jobs)} studies", file=sys.stderr, flush=True)
    builder.finish()


def _publish(store: ShardStore, inputs: _Inputs) -> PrepareSummary:
    """Write link table, quarantine, summary and index; the manifest comes last and makes the dataset."""
    tally = store.tally
    tally.add(inputs.inventory.tally)
    if tally.files != inputs.inventory.files:
        raise AssertionError(f"{inputs.inventory.files} files went in, {tally.files} are accounted for")
    fs, root = open_store(inputs.out)
    entries = [*tally.entries, *inputs.side.entries]
    explained = explain(entries, inputs.inventory.studies, inputs.side.sources, inputs.keyring)
    write_link_table(inputs.link_table, [*inputs.inventory.sources, *explained, *_study_links(inputs)])
    lines = "".join(json.dumps(entry.as_json(), sort_keys=True) + "\n" for entry in entries)
    publish(fs, f"{root}/{QUARANTINE}", lines.encode())
    samples = store.samples
    if not samples:
        raise UserError(
            f"nothing could be prepared: {tally.quarantined_files} files are quarantined, see {inputs.out}/{QUARANTINE}"
        )
    config = inputs.config
    splits = split_patients([s.patient for s in samples], config.test_fraction, config.split_seed, inputs.keyring)
    for sample in samples:
        sample.split = splits[sample.patient]
    summary = _summarise(store, inputs, tally, entries)
    publish(fs, f"{root}/{SUMMARY}", summary.to_json())
    versions = {
        "prepare": VERSION,
        "deidentification": deid.VERSION,
        "confidentiality_options": confidentiality_options(deid.CONFIDENTIALITY_OPTIONS, inputs.config.deface),
        "input": store.fingerprint,
    }
    write_index(inputs.out, store.shards, samples, versions)
    return summary


def _summarise(store: ShardStore, inputs: _Inputs, tally: Tally, entries: Sequence[Entry]) -> PrepareSummary:
    samples = store.samples
    labels, reports = inputs.side.labels, inputs.side.reports
    rows = [*labels.by_study.values(), *labels.by_series.values()]
    return PrepareSummary(
        dataset_id=dataset_hash(store.shards, samples),
        out=inputs.out,
        files=inputs.inventory.files,
        used=tally.used,
        excluded=dict(sorted(tally.excluded.items())),
        quarantined=count_reasons(entries),
        studies=len(samples),
        patients=len({sample.patient for sample in samples}),
        series=tally.series,
        volumes=tally.volumes,
        members=tally.members,
        missing_slices=tally.invalid_slices,
        shards=len(store.shards),
        splits={word: sum(s.split == word for s in samples) for word in ("train", "test")},
        contrasts=dict(sorted(tally.contrasts.items())),
        reports=store.reports,
        refused_reports=count_reasons(entries, "report"),
        labelled=len(labels.by_study),
        refused_labels=sum(label_values(row, inputs.config.labels)[1] for row in rows),
        unlinked_labels=len(labels.unknown_rows),
        unknown_reports=reports.unknown_rows,
        placeholder_patients=sum(
            is_placeholder(headers[0].identity.patient_id) for headers in inputs.inventory.studies.values()
        ),
        masks=tally.masks,
        refused_masks=count_reasons(entries, "mask"),
        linked_patients=_linked_patients(inputs),
        link_table=str(inputs.link_table),
    )


def _linked_patients(inputs: _Inputs) -> int:
    """Pseudonyms that join several patient numbers."""
    numbers: dict[str, set[tuple[str, str]]] = {}
    for headers in inputs.inventory.studies.values():
        identity = headers[0].identity
        if not is_placeholder(identity.patient_id):
            numbers.setdefault(inputs.patient(headers), set()).add((identity.issuer, identity.patient_id))
    return sum(len(found) > 1 for found in numbers.values())


def _study_links(inputs: _Inputs) -> Iterator[tuple[str, str, str]]:
    """Rows of the link table for studies and patients."""
    for uid, headers in sorted(inputs.inventory.studies.items()):
        yield inputs.keyring.study(uid), "study", uid
        yield inputs.patient(headers), "patient", headers[0].identity.patient_id
