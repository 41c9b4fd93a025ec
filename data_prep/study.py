"""One study, start to finish, inside a worker process: its files in, the members of its sample out."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from data_prep import deid
from data_prep.burned_in import holds_text
from data_prep.convert import Volume, convert
from data_prep.deface import deface
from data_prep.headers import Header, Scan
from data_prep.keys import Keyring
from data_prep.ledger import NO_SPACE, Entry, QuarantineError, Reason, Rule, Tally
from data_prep.limits import TookTooLong, time_limit
from data_prep.masks import MaskFile, encode_mask, read_mask
from data_prep.nifti import load_nifti
from data_prep.normalise import encode_series
from data_prep.remote import fetched
from data_prep.reports.labeller import report_labels
from data_prep.reports.text import clean_report
from data_prep.sequences import is_localizer, recognise
from data_prep.stacks import Stack, drop_duplicates, shell_of, split_series
from fm.config.errors import UserError
from fm.config.prepare import BurnedIn, Gaps, PrepareConfig, Volumes
from fm.data.sample import Agent, Contrast, LabelValue, Report, SeriesMeta, StudyMeta, to_json

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class StudyJob:
    """What a worker needs for one study."""

    key: str
    patient: str
    headers: list[Header]
    """Every image file of the study, by path."""
    report: str | None
    report_item: str
    """Keyed id of the report."""
    labels: dict[str, LabelValue]
    keyring: Keyring
    config: PrepareConfig
    binary: str
    """dcm2niix."""
    site: str = ""
    """Keyed id of the institution."""
    series_labels: dict[str, dict[str, LabelValue]] = field(default_factory=dict)
    """Labels by SeriesInstanceUID."""
    masks: dict[str, MaskFile] = field(default_factory=dict)
    """Segmentations by SeriesInstanceUID."""
    brain_masks: dict[str, MaskFile] = field(default_factory=dict)
    """Brain masks by SeriesInstanceUID."""


@dataclass(kw_only=True, slots=True)
class StudyResult:
    """What became of one study."""

    key: str
    patient: str
    members: dict[str, bytes]
    """Members of the sample by extension; empty where nothing was left of the study."""
    tally: Tally
    has_report: bool = False


@dataclass(kw_only=True, slots=True)
class _Converted:
    """The volumes of one stack, with the header they came from."""

    scan: Scan
    volumes: list[Volume]
    files: int
    series_uid: str
    stack: int


@dataclass(kw_only=True, slots=True)
class _Sample:
    """The sample while it grows."""

    job: StudyJob
    tally: Tally = field(default_factory=Tally)
    members: dict[str, bytes] = field(default_factory=dict)
    series: list[SeriesMeta] = field(default_factory=list)
    names: Counter[str] = field(default_factory=Counter)
    frames: dict[str, int] = field(default_factory=dict)
    regions: Counter[str] = field(default_factory=Counter)
    report: Report | None = None
    agent_on_every_series: bool = False
    """Several series, all with an agent tag: it was filled for all of them."""

    def quarantine(self, reason: Reason, files: int, *item: str) -> None:
        """Note a part of the study that is left out."""
        keyed = self.job.keyring.item(*item)
        self.tally.entries.append(Entry(item=keyed, kind="series", reason=reason, files=files, study=self.job.key))


def guarded_study(job: StudyJob) -> StudyResult:
    """Process a study; whatever goes wrong in it costs that study alone (a full disk stops the run)."""
    try:
        with time_limit(job.config.study_timeout_s), tempfile.TemporaryDirectory(prefix="fm-fetch-") as folder:
            return process_study(replace(job, headers=fetched(job.headers, Path(folder))))
    except MemoryError:
        return lost_study(job, Reason.OUT_OF_MEMORY)
    except TookTooLong:
        return lost_study(job, Reason.STUDY_TIMEOUT)
    except UserError:
        raise
    except Exception as err:
        if isinstance(err, OSError) and err.errno in NO_SPACE:
            raise UserError(
                "no space left for temporary files: free some, or set TMPDIR to a larger disk, and run the same "
                "command again; it goes on"
            ) from None
        # the message may quote a header, so only its kind and place are told
        trace = err.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace is not None else "?"
        print(f"study {job.key}: left out after {type(err).__name__} in {place}", file=sys.stderr, flush=True)
        return lost_study(job, Reason.INTERNAL)


def lost_study(job: StudyJob, reason: Reason) -> StudyResult:
    """A study of which nothing could be had; its files are accounted for."""
    item = job.keyring.item("study", job.key)
    entry = Entry(item=item, kind="study", reason=reason, files=len(job.headers), study=job.key)
    return StudyResult(key=job.key, patient=job.patient, members={}, tally=Tally(entries=[entry]))


def process_study(job: StudyJob) -> StudyResult:
    """Convert, recognise, normalise and de-identify one study, step by step.

    A series that fails is quarantined and the others go on; a study of which no series is left gives no members.

    Raises:
        OSError: no space left for temporary files.
    """
    sample = _Sample(job=job)
    for step in _STEPS:
        step(sample)
    if not sample.series:
        return StudyResult(key=job.key, patient=job.patient, members={}, tally=sample.tally)
    identity, region = job.headers[0].identity, _commonest(sample.regions)
    meta = StudyMeta(
        key=job.key,
        patient=job.patient,
        region=region,
        series=sample.series,
        age=deid.age(identity),
        sex=deid.sex(identity),
        report=sample.report,
        labels={**job.labels, **report_labels(sample.report, region, job.config)},
        site=job.site,
    )
    members = {"json": to_json(meta), **sample.members}
    return StudyResult(
        key=job.key, patient=job.patient, members=members, tally=sample.tally, has_report=sample.report is not None
    )


def _add_images(sample: _Sample) -> None:
    """Every series of the study, stack by stack."""
    by_series: dict[str, list[Header]] = {}
    for header in sample.job.headers:
        by_series.setdefault(header.series_uid, []).append(header)
    sample.agent_on_every_series = len(by_series) > 1 and all(part[0].scan.agent for part in by_series.values())
    # Series number and instance time order series as acquired; the UID only breaks ties, so that names are stable
    ordered = sorted(by_series.items(), key=lambda item: (item[1][0].scan.series_number, item[0]))
    for uid, headers in ordered:
        if is_localizer(headers):
            sample.tally.excluded[Rule.LOCALIZER.value] += len(headers)
            continue
        before = len(sample.series)
        for number, stack in enumerate(_stacks(sample, uid, headers)):
            converted = _convert(sample, uid, number, stack)
            if converted is not None:
                _store(sample, converted)
        sample.tally.series += len(sample.series) > before


def _stacks(sample: _Sample, uid: str, headers: Sequence[Header]) -> list[Stack]:
    groups = split_series(headers)
    sample.tally.split_series += len(groups) > 1
    stacks: list[Stack] = []
    for number, group in enumerate(groups):
        try:
            stack = drop_duplicates(group)
        except QuarantineError as err:
            sample.quarantine(err.reason, len(group), "series", uid, str(number))
            continue
        if stack.dropped:
            sample.tally.excluded[Rule.DUPLICATE.value] += len(stack.dropped)
            log.info("study %s: %d duplicate slices dropped", sample.job.key, len(stack.dropped))
        stacks.append(stack)
    return stacks


def _convert(sample: _Sample, uid: str, number: int, stack: Stack) -> _Converted | None:
    headers, config = stack.headers, sample.job.config
    try:
        if headers[0].nifti:
            volumes = load_nifti(headers[0])
        else:
            volumes = convert(headers, sample.job.binary, config.convert_timeout_s)
        gaps = int(sum((~volume.slice_valid).sum() for volume in volumes))
        if gaps and config.gaps == Gaps.quarantine:
            raise QuarantineError(Reason.MISSING_SLICES)
        looked_at = volumes[:: max(1, len(volumes) // 4)]  # a caption stands in all volumes of a series
        if config.burned_in == BurnedIn.quarantine and any(holds_text(volume.values) for volume in looked_at):
            raise QuarantineError(Reason.BURNED_IN)
    except QuarantineError as err:
        sample.quarantine(err.reason, len(headers), "series", uid, str(number))
        return None
    except MemoryError:
        sample.quarantine(Reason.OUT_OF_MEMORY, len(headers), "series", uid, str(number))
        return None
    sample.tally.volumes += len(volumes)
    sample.tally.invalid_slices += gaps
    return _Converted(scan=headers[0].scan, volumes=volumes, files=len(headers), series_uid=uid, stack=number)


def _store(sample: _Sample, converted: _Converted) -> None:
    """Normalise and name the volumes of a stack; its files count as used once one of them is stored."""
    scan, config = converted.scan, sample.job.config
    volumes = converted.volumes
    if config.volumes == Volumes.mean:
        volumes = mean_volumes(volumes)
    stored, failure = 0, None
    for volume in volumes:
        recognition = recognise(
            scan, len(converted.volumes), volume.b_value, volume.affine, volume.values, sample.agent_on_every_series
        )
        contrast, agent = recognition.contrast.value, recognition.agent.value
        name = _name(sample, contrast, agent, volume.b_value)
        frame = sample.frames.setdefault(scan.frame_of_reference or converted.series_uid, len(sample.frames))
        try:
            shown, defaced = deface(volume, recognition.region.value, _brain_mask(sample.job, converted), config)
            member = encode_series(shown, scan, recognition, name, frame, config)
        except QuarantineError as err:
            failure = err.reason
            sample.tally.show(err.reason, err.picture)
            if len(volumes) > 1:
                sample.quarantine(
                    err.reason, 0, "volume", converted.series_uid, str(converted.stack), str(volume.index)
                )
            continue
        member.meta.defaced = defaced
        member.meta.labels = sample.job.series_labels.get(converted.series_uid, {})
        sample.names[_base(contrast, agent, volume.b_value)] += 1
        sample.members[f"{name}.b2"] = member.payload
        sample.series.append(member.meta)
        _mask(sample, converted, member.meta)
        sample.tally.contrasts[contrast.value] += 1
        stored += 1
    if stored:
        sample.tally.used += converted.files
        sample.tally.members += stored
        sample.regions[sample.series[-1].region] += 1
    else:
        reason = failure or Reason.CONVERTER_FAILED
        sample.quarantine(reason, converted.files, "series", converted.series_uid, str(converted.stack))


def _mask(sample: _Sample, converted: _Converted, meta: SeriesMeta) -> None:
    """Store the segmentation of a series beside one of its volumes; one that does not fit costs itself alone."""
    file = sample.job.masks.get(converted.series_uid)
    if file is None:
        return
    try:
        mask = read_mask(file.path, sample.job.config.mask_names)
        sample.members[f"{meta.name}.seg.b2"] = encode_mask(mask, meta, converted.scan.frame_of_reference)
        sample.tally.masks += 1
    except QuarantineError as err:
        sample.tally.entries.append(Entry(item=file.item, kind="mask", reason=err.reason, study=sample.job.key))


def _brain_mask(job: StudyJob, converted: _Converted) -> str:
    """File of the brain mask of a series: its own, else that of another one in its frame of reference."""
    own, frame = job.brain_masks.get(converted.series_uid), converted.scan.frame_of_reference
    if own is not None or not frame:
        return "" if own is None else own.path
    alike = {header.series_uid for header in job.headers if header.scan.frame_of_reference == frame}
    return next((file.path for series, file in sorted(job.brain_masks.items()) if series in alike), "")


def mean_volumes(volumes: Sequence[Volume]) -> list[Volume]:
    """The first b = 0, the mean of each diffusion shell, and the mean of volumes without diffusion weighting."""
    groups: dict[int | None, list[Volume]] = {}
    for volume in volumes:
        groups.setdefault(shell_of(volume.b_value), []).append(volume)
    return [
        group[0]
        if len(group) == 1 or shell == 0
        else replace(group[0], values=np.mean([volume.values for volume in group], axis=0, dtype=np.float32))
        for shell, group in groups.items()
    ]


def _base(contrast: Contrast, agent: Agent, b_value: float | None) -> str:
    """Series name: contrast, ``_c`` after contrast agent, the diffusion shell."""
    shell = shell_of(b_value) if contrast is Contrast.DWI else None
    return contrast.value + ("_c" if agent is Agent.YES else "") + (f"_b{shell}" if shell is not None else "")


def _name(sample: _Sample, contrast: Contrast, agent: Agent, b_value: float | None) -> str:
    base = _base(contrast, agent, b_value)
    count = sample.names[base] + 1
    return base if count == 1 else f"{base}_{count}"


def _add_report(sample: _Sample) -> None:
    """The study's report, de-identified."""
    job = sample.job
    if job.report is None:
        return
    identities = list(dict.fromkeys(header.identity for header in job.headers))
    try:
        config = job.config
        sample.report = clean_report(
            job.report,
            identities,
            config.report_max_chars,
            config.report_sections,
            config.ner_model,
            config.ner_labels,
        )
    except QuarantineError as err:
        entry = Entry(item=job.report_item, kind="report", reason=err.reason, study=job.key)
        sample.tally.entries.append(entry)


_STEPS = (_add_images, _add_report)
"""What is done for each study, in order; a step adds to the sample and to its account."""


def _commonest(regions: Counter[str]) -> str:
    known = Counter({word: count for word, count in regions.items() if word != "unknown"})
    return min(known, key=lambda word: (-known[word], word)) if known else "unknown"
