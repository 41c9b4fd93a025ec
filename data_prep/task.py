"""One preparation: what goes in, what decides what comes out, and what is left to do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from data_prep import deid
from data_prep.beside import read_ledger
from data_prep.catalogue import Catalogue
from data_prep.headers import Header
from data_prep.inventory import Inventory
from data_prep.keys import Keyring, Restricted, is_placeholder
from data_prep.ledger import Rule, Tally
from data_prep.persons import Persons
from data_prep.side_inputs import PATHS, SideInputs
from data_prep.tables import file_hash
from fm.config.prepare import PrepareConfig
from fm.data.index import Manifest

VERSION = "3"
"""Version of the preparation; recorded in the manifest."""
_NOT_IN_BYTES = (
    "key_file",
    "memory_limit_gib",
    "convert_timeout_s",
    "study_timeout_s",
    "unknown_reports",
    "cluster",
    "studies_in_flight",
    "worker_retries",
    "slurm_partition",
    "slurm_account",
    "slurm_walltime",
)
"""Settings that decide where and how long work is done, not what comes out."""
_OF_STUDIES = ("masks", "brain_masks")
"""Folders whose files belong to studies: they may grow with the input."""


@dataclass(kw_only=True, slots=True)
class Inputs:
    """Everything one preparation works with."""

    out: str
    source: str
    config: PrepareConfig
    keyring: Keyring
    restricted: Restricted
    catalogue: Catalogue
    inventory: Inventory
    side: SideInputs
    persons: Persons
    settings: str
    """Keyed hash of the settings that decide the output."""
    fingerprint: str
    """The same, of the settings and of everything that goes in."""

    def study_source(self, uid: str, headers: Sequence[Header]) -> str:
        """Keyed hash of what a study is made from."""
        side, series = self.side, {header.series_uid for header in headers}
        rows = [side.reports.by_study.get(uid), side.labels.by_study.get(uid)]
        rows += [side.labels.by_series.get(one) for one in sorted(series)]
        masks = [
            [(one, file_hash(file.path)) for one, file in sorted(files.of(series).items())]
            for files in (side.masks, side.brain_masks)
        ]
        parts = [*sorted(header.instance_uid for header in headers), json.dumps([rows, masks], sort_keys=True)]
        return self.keyring.digest("source", *parts)


@dataclass(kw_only=True, slots=True)
class Plan:
    """Which studies of an input are to be made, and what is known of the others."""

    base: Manifest | None
    """The dataset that the new studies are appended to."""
    new: list[tuple[str, str]] = field(default_factory=list)
    """Key and UID, in the order of the keys."""
    changed: int = 0
    """Studies of the base that come from other files, report or labels now."""
    tally: Tally = field(default_factory=Tally)
    """Files of patients who withdrew."""
    withdrawn: set[str] = field(default_factory=set)
    """Keys of their studies that are in the input."""
    placeholders: int = 0
    linked: int = 0


def hash_settings(config: PrepareConfig, keyring: Keyring) -> str:
    """Keyed hash of the settings that decide the output; an output of others is not continued, nor added to."""
    settings = asdict(config)
    for irrelevant in (*_NOT_IN_BYTES, *_OF_STUDIES):
        settings.pop(irrelevant)
    # what a path holds decides, not where it lies; masks belong to studies as images do
    hashes = [file_hash(settings.pop(name) or None) for name in PATHS if name not in _OF_STUDIES]
    parts = (*hashes, json.dumps(settings, sort_keys=True), VERSION, deid.VERSION)
    return keyring.digest("settings", *parts)


def fingerprint(catalogue: Catalogue, beside: Sequence[str | None], settings: str, keyring: Keyring) -> str:
    """Keyed hash of everything that decides the output; the state of another fingerprint is not continued.

    Args:
        catalogue: the images.
        beside: files and folders beside them that may grow with them: reports, labels, masks.
        settings: from :func:`hash_settings`.
        keyring: of the run.
    """
    digest = hashlib.sha256()
    for line in catalogue.stamps():
        digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))
    return keyring.digest("fingerprint", digest.hexdigest(), *map(file_hash, beside), settings)


def make_plan(inputs: Inputs, base: Manifest | None) -> Plan:
    """Go through the studies of the input once."""
    plan = Plan(base=base)
    sources = {} if base is None else {a.study: a.source for a in read_ledger(inputs.out, base.history)}
    withdrawn = inputs.restricted.withdrawn()
    numbers: dict[str, set[tuple[str, str]]] = {}
    studies = inputs.inventory.studies
    for key, uid, files in studies.by_key():
        first = studies.first(uid)
        patient = inputs.persons.pseudonym([first], inputs.keyring)
        if is_placeholder(first.identity.patient_id):
            plan.placeholders += 1
        elif inputs.persons.by_number:
            numbers.setdefault(patient, set()).add((first.identity.issuer, first.identity.patient_id))
        if patient in withdrawn:
            plan.tally.excluded[Rule.WITHDRAWN.value] += files
            plan.withdrawn.add(key)
        elif key not in sources:
            plan.new.append((key, uid))
        else:
            plan.changed += sources[key] != inputs.study_source(uid, studies[uid])
    plan.linked = sum(len(found) > 1 for found in numbers.values())
    return plan
