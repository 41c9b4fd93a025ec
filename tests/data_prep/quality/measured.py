"""What the checks find: planted defects, clean phantoms and real series; ``docs/quality.md`` states the figures.

``python -m tests.data_prep.quality.measured STUDIES`` prints the tables.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np

from data_prep import normalise, study
from data_prep.convert import converter
from data_prep.headers import Header, HeaderReader, silence_pydicom
from data_prep.keys import Keyring
from data_prep.ledger import QuarantineError
from data_prep.phantom import simulate
from data_prep.quality import checks
from fm.config.phantom import PhantomConfig
from fm.config.prepare import Deface, PrepareConfig
from fm.data.sample import SeriesMeta
from fm.grid import border_connected_air
from fm.grid.orientation import world_axes
from tests.data_prep.quality.defects import DEFECTS

DIFFUSION = ("dwi", "adc")


@dataclass(kw_only=True, slots=True)
class Series:
    """One series as the checks see it."""

    picture: checks.Picture
    meta: SeriesMeta
    known: frozenset[str]
    """What the phantom did to it: 'motion', 'missing'."""


def series_of(folder: Path, truth: Path | None = None, studies: int = 10**6) -> list[Series]:
    """Every series of a folder of DICOM, with the phantom's truth where there is one."""
    silence_pydicom()
    binary, keyring, found = converter(), Keyring(b"a key for tests, not a secret..."), []
    known = _known(truth) if truth is not None else {}
    for uid, headers in sorted(_headers(folder).items())[:studies]:
        job = study.StudyJob(
            key="s", patient="p", headers=headers, report=None, report_item="", labels={}, keyring=keyring,
            config=PrepareConfig(deface=Deface.none), binary=binary,
        )  # fmt: skip
        with _recorded() as seen:
            study.process_study(job)
        found += [Series(picture=p, meta=m, known=known.get((uid, number), frozenset())) for p, m, number in seen]
    return found


def sensitivity(series: list[Series], seed: int = 0) -> dict[str, tuple[int, int]]:
    """Found and planted, by defect; structural series without a known fault only."""
    rng = np.random.default_rng(seed)
    limits = PrepareConfig().limits
    result = {}
    usable = [s for s in series if s.meta.contrast.value not in DIFFUSION and not s.known]
    for defect in DEFECTS:
        found = 0
        for entry in usable:
            values = defect.plant(entry.picture.values, rng)
            body = ~border_connected_air(values, entry.picture.valid)
            picture = checks.Picture(values=values, body=body, valid=entry.picture.valid)
            found += defect.check in checks.judge(checks.measure(picture, entry.meta), limits, {})
        result[f"{defect.check}: {defect.words}"] = (found, len(usable))
    heads = [entry for entry in usable if entry.meta.region == checks.HEAD]
    for share in (0.35, 0.5):
        caught = sum(bool({"cut_off", "short_coverage"} & set(_without_top(entry, share))) for entry in heads)
        result[f"cut_off or short_coverage: upper {share:.0%} of a head missing"] = (caught, len(heads))
    return result


def _without_top(entry: Series, share: float) -> list[str]:
    """Flags of a head whose upper part was not scanned."""
    axis = world_axes(np.asarray(entry.meta.affine)).index(2)
    kept = [slice(None)] * 3
    kept[axis] = slice(0, round(entry.picture.values.shape[axis] * (1 - share)))
    picture = checks.Picture(
        values=entry.picture.values[tuple(kept)],
        body=entry.picture.body[tuple(kept)],
        valid=entry.picture.valid[kept[0]],
    )
    meta = replace(entry.meta, slice_position_mm=entry.meta.slice_position_mm[kept[0]])
    return checks.judge(checks.measure(picture, meta), PrepareConfig().limits, {})


def false_positives(series: list[Series]) -> tuple[Counter[str], Counter[str]]:
    """Flags of series without a known fault: structural, and diffusion or ADC; 'series' counts them all."""
    counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for entry in series:
        if entry.known:
            continue
        one = counts[entry.meta.contrast.value in DIFFUSION]
        one["series"] += 1
        one.update(entry.meta.flags)
        one["any"] += bool(entry.meta.flags)
    return counts


def _known(truth: Path) -> dict[tuple[str, int], frozenset[str]]:
    found = {}
    for line in truth.read_text("utf-8").splitlines():
        record = json.loads(line)
        for series in record["series"]:
            words = {"motion": series["motion"], "missing": bool(series["dropped_slices"])}
            found[record["study_uid"], series["series_number"]] = frozenset(word for word in words if words[word])
    return found


def _headers(folder: Path) -> dict[str, list[Header]]:
    reader, found = HeaderReader(), {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            header = reader.read(str(path))
        except QuarantineError:
            continue
        if isinstance(header, Header):
            found.setdefault(header.study_uid, []).append(header)
    return found


@contextmanager
def _recorded() -> Iterator[list[tuple[checks.Picture, SeriesMeta, int]]]:
    seen: list[tuple[checks.Picture, SeriesMeta, int]] = []
    measure, encode, numbers = checks.measure, study.encode_series, [0]

    def recording(picture: checks.Picture, meta: SeriesMeta) -> dict[str, float]:
        seen.append((picture, meta, numbers[-1]))
        return measure(picture, meta)

    def numbered(*args: object) -> normalise.SeriesMember:
        numbers.append(args[1].series_number)  # type: ignore[attr-defined]  # the scan
        return encode(*args)  # type: ignore[arg-type]

    with patch.object(checks, "measure", recording), patch.object(study, "encode_series", numbered):
        yield seen


def main(studies: int) -> None:
    """Print both tables."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(os.environ.get("PHANTOM", folder))
        if not (out / "truth.jsonl").exists():
            simulate(out, studies, 3, PhantomConfig(), 2)
        series = series_of(out / "dicom", out / "truth.jsonl", studies)
    for name, (found, planted) in sensitivity(series).items():
        print(f"| {name.replace(': ', ' | ')} | {found} of {planted} |")
    motion = [entry for entry in series if "motion" in entry.known]
    print("the phantom's own motion:", sum("ghosting" in e.meta.flags for e in motion), "of", len(motion))
    gaps = [entry for entry in series if "missing" in entry.known]
    print("missing slices:", sum("missing_slices" in e.meta.flags for e in gaps), "of", len(gaps))
    for name, counts in zip(("structural", "diffusion and ADC"), false_positives(series), strict=True):
        print(name, dict(counts))
    if "MRI_DEV_DATA" in os.environ:
        for entry in series_of(Path(os.environ["MRI_DEV_DATA"]) / "dicom"):
            print(entry.meta.name, entry.meta.vendor, entry.meta.shape, entry.meta.flags, entry.meta.quality)


if __name__ == "__main__":
    main(int(sys.argv[1]))
