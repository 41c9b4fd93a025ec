"""Writes docs/sequences.md: ``MRI_DEV_DATA=<folder> python tests/data_prep/sequence_table.py``.

Every series of the development data with its truth (read from pictures, protocols and the data's own notes) beside the
answer, and the score on headers generated from published protocols.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_prep.convert import Volume, convert, converter
from data_prep.headers import Header, HeaderReader, Scan, scan_of
from data_prep.sequences import Recognition, recognise
from fm.data.sample import Acquisition, Agent, Contrast, Plane, Role
from tests.data_prep.protocols import PROTOCOLS, Case, generate

TABLE = Path(__file__).resolve().parents[2] / "docs" / "sequences.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """What a series of the development data is."""

    folder: str
    contrast: Contrast
    role: Role
    agent: Agent = Agent.UNKNOWN
    plane: Plane = Plane.AXIAL
    acquisition: Acquisition = Acquisition.TWO_D
    region: str = "head"


# The Hitachi header names no region and holds no words: "shoulder" stands only in the data's own notes
TRUTHS = (
    Truth(folder="NIH-GE-MR750/EPI_BOLD", contrast=Contrast.BOLD, role=Role.ORIGINAL),
    Truth(folder="PGBM-003/FLAIR", contrast=Contrast.FLAIR, role=Role.REGISTERED),
    Truth(folder="PGBM-003/T1post", contrast=Contrast.T1W, role=Role.ORIGINAL, agent=Agent.YES),
    Truth(folder="PGBM-003/T1pre", contrast=Contrast.T1W, role=Role.REGISTERED),
    Truth(folder="PGBM-003/T2", contrast=Contrast.T2W, role=Role.REGISTERED),
    Truth(folder="PGBM-006/FLAIR", contrast=Contrast.FLAIR, role=Role.REGISTERED),
    Truth(folder="PGBM-006/T1post", contrast=Contrast.T1W, role=Role.ORIGINAL, agent=Agent.YES),
    Truth(folder="PGBM-006/T2", contrast=Contrast.T2W, role=Role.REGISTERED),
    Truth(folder="UIH-uMR770/DWI", contrast=Contrast.DWI, role=Role.ORIGINAL),
    Truth(
        folder="icometrix-Hitachi/shoulder_PD",
        contrast=Contrast.PD,
        role=Role.ORIGINAL,
        plane=Plane.SAGITTAL,
        region="shoulder",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """One series of the development data, converted."""

    truth: Truth
    scan: Scan
    volumes: list[Volume]

    def answer(self, scan: Scan) -> Recognition:
        """What the recogniser says of its last volume under a changed header."""
        volume = self.volumes[-1]
        return recognise(scan, len(self.volumes), volume.b_value, volume.affine, volume.values)

    @property
    def blank(self) -> Scan:
        """The header without any word: description, protocol, sequence name, study and body part."""
        return replace(self.scan, description="", protocol="", sequence_name="", study_description="", body_part="")

    def with_words_of(self, other: Series) -> Scan:
        """The header with description and protocol name of another series."""
        return replace(self.scan, description=other.scan.description, protocol=other.scan.protocol)


def development_series(mri_dev: Path) -> Iterator[Series]:
    """Every series of the development data."""
    binary = converter()
    for truth in TRUTHS:
        found = [HeaderReader().read(str(path)) for path in sorted((mri_dev / "dicom" / truth.folder).iterdir())]
        headers = [header for header in found if isinstance(header, Header)]
        yield Series(truth=truth, scan=headers[0].scan, volumes=convert(headers, binary, 60))


def right(truth: Truth, found: Recognition) -> bool:
    """Whether contrast and agent are as they should be."""
    return found.contrast.value is truth.contrast and found.agent.value is truth.agent


def score() -> tuple[Counter[str], Counter[str], list[Case]]:
    """Right answers and headers by fault, and the headers whose contrast was taken for another."""
    hits: Counter[str] = Counter()
    count: Counter[str] = Counter()
    wrong: list[Case] = []
    for case in generate():
        found = recognise(scan_of(case.header), case.protocol.volumes)
        count[case.fault] += 1
        hits[case.fault] += found.contrast.value is case.protocol.contrast
        if found.contrast.value is not case.protocol.contrast:
            wrong.append(case)
    return hits, count, wrong


def _row(series: Series, everything: list[Series]) -> str:
    truth, found = series.truth, series.answer(series.scan)
    swaps = [series.answer(series.with_words_of(other)) for other in everything if other is not series]
    swapped = f"{sum(right(truth, answer) for answer in swaps)}/{len(swaps)}"
    plane = "" if found.plane is None else found.plane.value
    cells = (
        truth.folder,
        f"{truth.contrast}, agent {truth.agent}, {truth.role}, {truth.plane}, {truth.acquisition}, {truth.region}",
        f"{found.contrast.value}, agent {found.agent.value}, {found.role.value}, {plane}, {found.acquisition.value}, "
        f"{found.region.value}; fat suppressed: {found.fat_suppression.value}",
        f"{found.contrast.rule} ({found.contrast.confidence:.2f})",
        "right" if right(truth, series.answer(series.blank)) else "wrong",
        swapped,
    )
    return "| " + " | ".join(cells) + " |"


def table(mri_dev: Path) -> str:
    """The text of docs/sequences.md."""
    everything = list(development_series(mri_dev))
    hits, count, wrong = score()
    faults = [f"| {fault} | {count[fault]} | {hits[fault]} |" for fault in count]
    return "\n".join(
        (
            "# Sequence recognition",
            "",
            "Written by `MRI_DEV_DATA=<folder> python tests/data_prep/sequence_table.py`; a test compares it.",
            "",
            "## Development data",
            "",
            "Blanked: description, protocol, sequence name, study description and body part removed. Swapped: with "
            "description and protocol of each other series in turn. Both count contrast and agent.",
            "",
            "| series | truth | answer | rule for the contrast (confidence) | words blanked | words swapped |",
            "| --- | --- | --- | --- | --- | --- |",
            *(_row(series, everything) for series in everything),
            "",
            "## Generated headers",
            "",
            f"{sum(count.values())} headers from {len(PROTOCOLS)} published protocols (`tests/data_prep/protocols.py`) "
            f"as three vendors write them: the contrast is right in {sum(hits.values())}, "
            f"{sum(hits.values()) / sum(count.values()):.1%}.",
            "",
            "| fault | headers | right |",
            "| --- | --- | --- |",
            *faults,
            "",
            "Wrong: " + ("; ".join(case.name for case in wrong) or "none") + ".",
            "",
        )
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    TABLE.write_text(table(Path(os.environ["MRI_DEV_DATA"])))
    print(f"wrote {TABLE.relative_to(Path.cwd())}")
