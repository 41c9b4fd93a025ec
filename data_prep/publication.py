"""The end of a preparation: what the files beside the shards say."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from data_prep import deid
from data_prep.beside import (
    SUMMARY,
    ledger_line,
    ledger_name,
    read_ledger,
    read_quarantine,
    remove_others,
    write_quarantine,
)
from data_prep.deface import confidentiality_options
from data_prep.keys import write_link_table
from data_prep.ledger import Entry, Tally
from data_prep.quality.checks import limit_of
from data_prep.quality.page import Rules
from data_prep.quality.review import PAGE, Review, review
from data_prep.shards import ShardStore
from data_prep.side_inputs import explain
from data_prep.summary import PrepareSummary, count_reasons
from data_prep.tables import label_values
from data_prep.task import VERSION, Inputs, Plan
from fm.config.errors import UserError
from fm.data.index import History, Manifest, SampleTable, dataset_hash, open_store, publish, write_index


@dataclass(kw_only=True, slots=True)
class _Whole:
    """The accounts of all studies, added up; they are many, so each is held for a moment only."""

    tally: Tally
    reports: int
    """Studies with a report."""
    added: int
    """Studies that this run added to the shards."""
    ledger: bytes


def publish_dataset(store: ShardStore, inputs: Inputs, plan: Plan) -> PrepareSummary:
    """Write link table, quarantine, ledger, summary and index; the manifest comes last and makes the dataset."""
    base = plan.base
    outside = Tally()
    outside.add(inputs.inventory.tally)
    outside.add(plan.tally)
    whole = _account(store, inputs, base)
    history = History()
    if base is not None:
        change = {"kind": "append", "studies": whole.added, "shards": [shard.name for shard in store.shards]}
        history = base.history.after(base.dataset_id, change)
    tally = whole.tally
    tally.add(outside)
    entries = [*tally.entries, *(entry for entry in inputs.side.entries if entry.study not in plan.withdrawn)]
    if base is not None:
        known = {json.dumps(entry.as_json()) for entry in entries}
        entries += [entry for entry in read_quarantine(inputs.out) if json.dumps(entry.as_json()) not in known]
    write_link_table(inputs.restricted.links, _links(inputs, entries))
    write_quarantine(inputs.out, entries)
    samples = _samples(store, base)
    if not len(samples):
        raise UserError(
            f"nothing could be prepared: {tally.quarantined_files} files are quarantined, see "
            f"{inputs.out}/quarantine.jsonl"
        )
    shards = [*(base.shards if base is not None else []), *store.shards]
    found = review(inputs, plan, shards, samples)
    samples = samples.with_splits(found.splits)
    summary = _summarise(inputs, plan, tally, entries, samples, found)
    summary.shards = len(shards)
    summary.dataset_id = dataset_hash(shards, samples)
    summary.reports = whole.reports
    rules = Rules(entries=entries, pictures=tally.pictures, limits=summary.limits, actions=summary.actions)
    fs, root = open_store(inputs.out)
    publish(fs, f"{root}/{ledger_name(history)}", whole.ledger)
    publish(fs, f"{root}/{SUMMARY}", summary.to_json())
    publish(fs, f"{root}/{PAGE}", found.page(rules, summary.dataset_id))
    versions = {
        "prepare": VERSION,
        "deidentification": deid.VERSION,
        "confidentiality_options": confidentiality_options(deid.CONFIDENTIALITY_OPTIONS, inputs.config.deface),
        "input": inputs.fingerprint,
        "settings": inputs.settings,
    }
    write_index(inputs.out, shards, samples, versions, history, found.tables())
    if base is not None:
        remove_others(inputs.out, Manifest.open(inputs.out))
    return summary


def _samples(store: ShardStore, base: Manifest | None) -> SampleTable:
    """The rows of the index; the new ones have no split yet."""
    tables = [SampleTable.of(settled.samples) for settled in store.settled() if settled.samples]
    return SampleTable.join([*([] if base is None else [base.samples]), *tables])


def _summarise(
    inputs: Inputs, plan: Plan, tally: Tally, entries: Sequence[Entry], samples: SampleTable, found: Review
) -> PrepareSummary:
    labels = inputs.side.labels
    rows = [*labels.by_study.values(), *labels.by_series.values()]
    splits = samples.column("split").to_pylist()
    return PrepareSummary(
        dataset_id="",
        out=inputs.out,
        files=tally.files,
        used=tally.used,
        excluded=dict(sorted(tally.excluded.items())),
        quarantined=count_reasons(entries),
        studies=len(samples),
        patients=len(set(samples.column("patient").to_pylist())),
        series=tally.series,
        volumes=tally.volumes,
        members=tally.members,
        missing_slices=tally.invalid_slices,
        shards=0,
        splits={"train": 0, "test": 0} | Counter(sorted(splits)),
        limits=limit_of(inputs.config.limits),
        actions={check: action.value for check, action in sorted(inputs.config.actions.items())},
        **found.counts(),
        contrasts=dict(sorted(tally.contrasts.items())),
        reports=0,
        refused_reports=count_reasons(entries, "report"),
        labelled=len(labels.by_study),
        refused_labels=sum(label_values(row, inputs.config.labels)[1] for row in rows),
        unlinked_labels=len(labels.unknown_rows),
        unknown_reports=inputs.side.reports.unknown_rows,
        placeholder_patients=plan.placeholders,
        masks=tally.masks,
        refused_masks=count_reasons(entries, "mask"),
        linked_patients=plan.linked,
        changed_studies=plan.changed,
        link_table=str(inputs.restricted.links),
    )


def _links(inputs: Inputs, entries: Sequence[Entry]) -> Iterator[tuple[str, str, str]]:
    """Rows of the link table: what is quarantined, studies, patients; those of withdrawn patients stay out."""
    yield from inputs.catalogue.links(inputs.source)
    yield from explain(entries, inputs.inventory.studies, inputs.side.sources, inputs.keyring)
    studies, withdrawn = inputs.inventory.studies, inputs.restricted.withdrawn()
    for uid in studies:
        first = studies.first(uid)
        patient = inputs.persons.pseudonym([first], inputs.keyring)
        if patient not in withdrawn:
            yield inputs.keyring.study(uid), "study", uid
            yield patient, "patient", first.identity.patient_id


def _account(store: ShardStore, inputs: Inputs, base: Manifest | None) -> _Whole:
    """Go through the accounts of the studies, in the order of their keys."""
    new = (account for settled in store.settled() for account in settled.accounts)
    standing = read_ledger(inputs.out, base.history) if base is not None else iter(())
    tally, reports, lines = Tally(), 0, bytearray()
    for account in heapq.merge(new, standing, key=lambda account: account.study):
        tally.add(account.tally)
        reports += account.report
        lines += ledger_line(account)
    added = sum(shard.samples for shard in store.shards)
    return _Whole(tally=tally, reports=reports, added=added, ledger=bytes(lines))
