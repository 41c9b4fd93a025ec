"""What a preparation is given beside the images: reports, labels, segmentations, brain masks, local models."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from data_prep.catalogue import Studies
from data_prep.headers import Header
from data_prep.keys import Keyring
from data_prep.ledger import Entry
from data_prep.masks import MaskFiles, find_masks
from data_prep.persons import Persons
from data_prep.reports.inputs import read_reports
from data_prep.reports.versions import link_reports
from data_prep.tables import Linked, StudyFinder, label_values, link, read_table
from fm.config.errors import UserError
from fm.config.prepare import PrepareConfig
from fm.data.sample import LabelValue

PATHS = ("link_file", "masks", "brain_masks", "ner_model", "labeller_model", "findings_file")
"""Settings that name files or folders."""
_MOST_STACKS, _MOST_VOLUMES = 64, 512
"""Parts of a series that are looked through to explain a quarantined one."""


@dataclass(kw_only=True, slots=True)
class SideInputs:
    """Everything beside the images, linked to studies and series."""

    reports: Linked
    labels: Linked
    masks: MaskFiles
    brain_masks: MaskFiles

    @property
    def entries(self) -> list[Entry]:
        """What could not be used."""
        return [*self.reports.entries, *self.labels.entries, *self.masks.entries]

    @property
    def sources(self) -> list[tuple[str, str, str]]:
        """(keyed id, kind, where it stands) of every row and file."""
        return [*self.reports.sources, *self.labels.sources, *self.masks.sources]

    def series_labels(self, series: Collection[str], allowed: Sequence[str]) -> dict[str, dict[str, LabelValue]]:
        """Labels of those of some series that have rows of their own."""
        rows = self.labels.by_series
        return {uid: label_values(rows[uid], allowed)[0] for uid in sorted(series) if uid in rows}


def check_side_inputs(reports: str | None, labels: str | None, config: PrepareConfig) -> None:
    """Refuse paths that lead nowhere, before anything is read.

    Raises:
        UserError: one does not exist, or is of the wrong kind.
    """
    if reports is not None and not os.path.exists(reports):
        raise UserError(f"reports={reports} does not exist; give a CSV, JSONL or Parquet file, or a folder of reports")
    if labels is not None and not os.path.isfile(labels):
        raise UserError(f"labels={labels} does not exist; give a CSV, JSONL or Parquet file")
    for name, path in (("masks", config.masks), ("brain_masks", config.brain_masks)):
        if path and not os.path.isdir(path):
            raise UserError(f"prepare.{name}={path} is no folder; give the one that holds the masks")
    for name, path in (("ner_model", config.ner_model), ("labeller_model", config.labeller_model)):
        if path and not os.path.isfile(os.path.join(path, "config.json")):
            raise UserError(f"prepare.{name}={path} holds no config.json; give the folder of a local model")
    if config.findings_file and not os.path.isfile(config.findings_file):
        raise UserError(f"prepare.findings_file={config.findings_file} does not exist; give a YAML file of findings")


def read_side_inputs(
    reports: str | None,
    labels: str | None,
    studies: Mapping[str, Sequence[Header]],
    keyring: Keyring,
    persons: Persons,
    config: PrepareConfig,
) -> SideInputs:
    """Read reports and labels, and find segmentations and brain masks.

    Raises:
        UserError: a table or folder that cannot be used.
    """
    found, rows, finder = Linked(), Linked(), StudyFinder(studies, persons)
    if reports is not None:
        versions = read_reports(reports, config.report_source, config.columns)
        found = link_reports(versions, finder, keyring, config.report_rule)
    if labels is not None:
        rows = link(read_table(labels, "labels", (), config.columns), finder, keyring)
    return SideInputs(
        reports=found,
        labels=rows,
        masks=find_masks(config.masks, studies, keyring),
        brain_masks=find_masks(config.brain_masks, studies, keyring),
    )


def explain(
    entries: Sequence[Entry],
    studies: Studies,
    sources: Sequence[tuple[str, str, str]],
    keyring: Keyring,
) -> Iterator[tuple[str, str, str]]:
    """Rows of the table beside the key for what was quarantined beside files: keyed id, kind, what it stands for."""
    wanted = {entry.item for entry in entries}
    yield from (row for row in sources if row[0] in wanted)
    with_series = {entry.study for entry in entries if entry.kind == "series"}
    with_volumes = {entry.study for entry in entries if entry.kind == "volume"}
    for key, uid, _ in studies.by_key():
        if key not in with_series | with_volumes:
            continue
        headers = studies[uid]
        for series in sorted({header.series_uid for header in headers}):
            for stack in map(str, range(min(_MOST_STACKS, len(headers)))):
                item = keyring.item("series", series, stack)
                if item in wanted:
                    yield item, "series", series
                for index in range(_MOST_VOLUMES if key in with_volumes else 0):
                    item = keyring.item("volume", series, stack, str(index))
                    if item in wanted:
                        yield item, "volume", series
