"""``withdraw``: a patient's studies leave a dataset; only the shards that held them are written again.

New shards, ledger and index get names of their own and the manifest, replaced last, switches to them; then the old
files and the patient's lines beside the key are removed. What is to be done stands in a file beside the key until all
of it is done, so that a killed withdrawal is finished by the same command.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import webdataset

from data_prep.beside import (
    SUMMARY,
    ledger_line,
    ledger_name,
    read_ledger,
    read_quarantine,
    remove_others,
    write_quarantine,
)
from data_prep.catalogue import Catalogue
from data_prep.keys import Keyring, Restricted, default_key_file, open_keyring, write_link_table
from data_prep.ledger import Tally
from data_prep.quality.page import Rules
from data_prep.quality.review import DUPLICATES, PAGE, review_again
from data_prep.shards import publish_file, write_file
from data_prep.summary import PrepareSummary, count_reasons
from fm.config.errors import UserError
from fm.data.index import Manifest, Sample, SampleTable, Shard, dataset_hash, open_store, publish, write_index
from fm.data.verify import scan_shard


@dataclass(kw_only=True, slots=True)
class WithdrawSummary:
    """What a withdrawal did."""

    studies: int
    shards: list[str]
    """Shards that held the patient and are gone."""
    parent: str
    dataset_id: str
    """Of the dataset without the patient."""


@dataclass(kw_only=True, slots=True)
class _Order:
    """What is to be done."""

    pseudonym: str
    studies: list[str]
    """Keys of the patient's studies, those of which nothing was left included."""
    parent: str
    shards: list[str]
    items: list[str]
    """Keyed ids of what is quarantined of them: reports, masks, series."""


def withdraw(url: str, patient: str, key_file: str, site: str) -> WithdrawSummary:
    """Remove a patient from a dataset, its ledgers, and the restricted files beside the key.

    Args:
        url: the dataset's folder.
        patient: pseudonym, or the number in the headers.
        key_file: of the dataset's key; empty: beside the dataset.
        site: as given to prepare.

    Raises:
        UserError: no key, no such patient, a number that several patients have, or nobody else in the dataset.
    """
    path = Path(key_file) if key_file else default_key_file(url)
    if not path.is_file():
        raise UserError(f"{path}: no key there; give the one that fm prepare used: key_file=FILE")
    keyring = open_keyring(path, url)
    restricted = Restricted(path, keyring.item(url)[:8])
    done = None
    if restricted.pending.exists():
        done = _carry_out(url, restricted, keyring, _Order(**json.loads(restricted.pending.read_bytes())))
    manifest = Manifest.open(url)
    try:
        pseudonym = _pseudonym(manifest, restricted, keyring, patient, site)
    except UserError:
        if done is not None:  # it was this patient's withdrawal that had been interrupted
            return done
        raise
    return _carry_out(url, restricted, keyring, _begin(manifest, restricted, pseudonym))


def _carry_out(url: str, restricted: Restricted, keyring: Keyring, order: _Order) -> WithdrawSummary:
    """Do what is left to do of a withdrawal."""
    manifest = Manifest.open(url)
    gone = set(order.studies)
    if gone & set(manifest.keys):
        _rewrite(manifest, restricted, order, gone)
        manifest = Manifest.open(url)
    write_quarantine(url, [entry for entry in read_quarantine(url) if entry.study not in gone])
    remove_others(url, manifest)
    _clean_restricted(url, restricted, keyring, order)
    restricted.pending.unlink()
    return WithdrawSummary(studies=len(gone), shards=order.shards, parent=order.parent, dataset_id=manifest.dataset_id)


def _pseudonym(manifest: Manifest, restricted: Restricted, keyring: Keyring, patient: str, site: str) -> str:
    """The pseudonym that a patient has in the dataset."""
    known = set(manifest.samples.column("patient").to_pylist())
    if patient in known:
        return patient
    wanted = patient.strip()
    found = {row[0] for row in _links(restricted) if row[1] == "patient" and row[2].strip() == wanted}
    found = (found or {keyring.patient(site, wanted, "")}) & known
    if len(found) > 1:
        raise UserError(f"patient: several patients have this number; give a pseudonym: {', '.join(sorted(found))}")
    if not found:
        raise UserError(
            f"patient: nobody in {manifest.url} has this number or pseudonym; give site= where prepare.site was set"
        )
    return found.pop()


def _begin(manifest: Manifest, restricted: Restricted, pseudonym: str) -> _Order:
    """Settle what is to be done, and see to it that no preparation takes the patient in again."""
    rows = [sample for sample in manifest.samples if sample.patient == pseudonym]
    if len(rows) == len(manifest.samples):
        raise UserError(f"{manifest.url} holds no other patient: remove the whole folder")
    order = _Order(
        pseudonym=pseudonym,
        studies=sorted({a.study for a in read_ledger(manifest.url, manifest.history) if a.patient == pseudonym}),
        parent=manifest.dataset_id,
        shards=sorted({sample.shard for sample in rows}),
        items=[],
    )
    gone = set(order.studies)
    order.items = sorted({entry.item for entry in read_quarantine(manifest.url) if entry.study in gone})
    restricted.add_withdrawn(pseudonym)
    write_file(restricted.pending, json.dumps(asdict(order)).encode())
    os.chmod(restricted.pending, 0o600)
    return order


def _rewrite(manifest: Manifest, restricted: Restricted, order: _Order, gone: set[str]) -> None:
    """Shards, ledger, summary, page, tables and index without the patient; the manifest comes last."""
    url = manifest.url
    change = {"kind": "withdraw", "studies": len(gone), "shards": order.shards}
    history = manifest.history.after(manifest.dataset_id, change)
    splits = dict(zip(*(manifest.samples.column(name).to_pylist() for name in ("key", "split")), strict=True))
    shards: list[Shard] = []
    tables: list[SampleTable] = []
    for shard in manifest.shards:
        table = manifest.samples.where(shard=shard.name)
        if shard.name in order.shards:
            left = [sample for sample in table if sample.key not in gone]
            if not left:
                continue
            shard, table = _repack(manifest, restricted, shard, left, len(history.parents))
        shards.append(shard)
        tables.append(table.with_splits(splits))
    samples = SampleTable.join(tables)
    lost, kept, reports, lines = Tally(), Tally(), 0, bytearray()
    for account in read_ledger(url, manifest.history):
        if account.study in gone:
            lost.add(account.tally)
        else:
            kept.add(account.tally)
            reports += account.report
            lines += ledger_line(account)
    fs, root = open_store(url)
    publish(fs, f"{root}/{ledger_name(history)}", bytes(lines))
    before = PrepareSummary.from_json(fs.cat_file(f"{root}/{SUMMARY}"), url, "")
    entries = [entry for entry in read_quarantine(url) if entry.study not in gone]
    found = review_again(url, shards, samples, manifest.table(DUPLICATES))
    summary = replace(
        _without(before, lost, samples),
        **found.counts(),
        dataset_id=dataset_hash(shards, samples),
        shards=len(shards),
        reports=reports,
        quarantined=count_reasons(entries),
        refused_reports=count_reasons(entries, "report"),
        refused_masks=count_reasons(entries, "mask"),
    )
    publish(fs, f"{root}/{SUMMARY}", summary.to_json())
    rules = Rules(entries=entries, pictures=kept.pictures, limits=summary.limits, actions=summary.actions)
    publish(fs, f"{root}/{PAGE}", found.page(rules, summary.dataset_id))
    write_index(url, shards, samples, manifest.versions, history, found.tables())


def _repack(
    manifest: Manifest, restricted: Restricted, shard: Shard, kept: Sequence[Sample], generation: int
) -> tuple[Shard, SampleTable]:
    """A shard with some of its studies, under a new name; their members' bytes are unchanged."""
    name = f"shard-{shard.name.split('-')[1].removesuffix('.tar')}-{generation}.tar"
    fs, root = open_store(manifest.url)
    folder = Path(root) if "file" in fs.protocol else restricted.key_file.parent
    temporary = folder / f".{name}.tmp"
    with temporary.open("wb") as file:
        # no owner, no time: as fm prepare writes them
        writer = webdataset.TarWriter(file, user="", group="", mtime=0, encoder=False)
        for sample in kept:
            members = {member: manifest.read(sample.key, member) for member in sample.members}
            writer.write({"__key__": sample.key, **members})
        writer.close()
        file.flush()
        os.fsync(file.fileno())
    with temporary.open("rb") as stream:
        found, samples = scan_shard(stream, name)
    publish_file(manifest.url, temporary, name)
    return found, SampleTable.of(samples)


def _without(before: PrepareSummary, lost: Tally, samples: SampleTable) -> PrepareSummary:
    """The counts of what is left."""
    splits = samples.column("split").to_pylist()
    return replace(
        before,
        files=before.files - lost.files,
        used=before.used - lost.used,
        excluded=dict(Counter(before.excluded) - lost.excluded),
        studies=len(samples),
        patients=len(set(samples.column("patient").to_pylist())),
        series=before.series - lost.series,
        volumes=before.volumes - lost.volumes,
        members=before.members - lost.members,
        masks=before.masks - lost.masks,
        missing_slices=before.missing_slices - lost.invalid_slices,
        splits={word: splits.count(word) for word in before.splits},
        contrasts=dict(sorted((Counter(before.contrasts) - lost.contrasts).items())),
    )


def _clean_restricted(url: str, restricted: Restricted, keyring: Keyring, order: _Order) -> None:
    """Remove the patient from the link table, the headers that were read, and the state of an unfinished run."""
    gone = {*order.studies, *order.items, order.pseudonym}
    write_link_table(restricted.links, [row for row in _links(restricted) if row[0] not in gone])
    if restricted.catalogue.exists():
        with closing(Catalogue(restricted.catalogue, None, keyring)) as catalogue:
            catalogue.forget(order.studies)
    fs, root = open_store(url)
    work = Path(root) / ".work" if "file" in fs.protocol else restricted.work
    shutil.rmtree(work, ignore_errors=True)


def _links(restricted: Restricted) -> list[tuple[str, str, str]]:
    if not restricted.links.exists():
        return []
    with restricted.links.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return [(row[0], row[1], row[2]) for row in list(csv.reader(file))[1:] if len(row) == 3]
