"""One worker's part of a fine-tuning run."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from fm.adapt.network import AdaptedNetwork
from fm.adapt.objective import TaskObjective
from fm.adapt.predict import HEAD_FILE, TASK_FILE
from fm.adapt.studies import feature_moments
from fm.adapt.targets import Scheme, Targets, prepare
from fm.adapt.validation import Validator
from fm.batch import StudyBatch
from fm.config.data import DataConfig
from fm.config.jobs.training import FinetuneJob
from fm.config.model import VitTextConfig
from fm.config.trainer import Weights
from fm.data.index import Manifest
from fm.data.plan import shares
from fm.data.reader import build_loader
from fm.data.store import access_of
from fm.data.tokenizer import load_tokenizer, train_tokenizer
from fm.engine.attempt import fit, guarded, keep_place, newest_step, on_rank_0
from fm.engine.card import card_facts
from fm.engine.cost import CostMeter
from fm.engine.environment import record_environment
from fm.engine.export import export_model, find_step
from fm.engine.module import TrainingModule
from fm.engine.places import open_checkpoints
from fm.engine.signals import StopFlag
from fm.engine.spikes import SpikeGuard
from fm.engine.state import STUDENT_FILE, TEACHER_FILE
from fm.engine.trainer import Stream
from fm.engine.verdict import Outcome, Verdict, write_verdict
from fm.models.build import build_model
from fm.models.encoder import load_encoder
from fm.models.model import FmModel
from fm.objectives import make_teacher
from fm.parallel.collectives import rank, world_size
from fm.parallel.hardware import resolve_precision

log = logging.getLogger(__name__)

EXPORT = "export"


def finetune(job: FinetuneJob, run_dir: Path, attempt: str = "1") -> Outcome:
    """Train until the last step or a stop signal; every worker process calls it with the same arguments.

    The run folder receives what a pretraining run's does; ``export/`` holds encoder, head and ``task.json``.

    Args:
        job: the configuration.
        run_dir: the run folder; it exists. With checkpoints it is resumed.
        attempt: name of this attempt.

    Returns:
        ``DONE``, or ``REQUEUE`` after a stop signal.

    Raises:
        UserError: encoder, labels, batch sizes, hardware or checkpoints do not allow the run; only NaN.
    """
    scheme, train, probed = prepare(job)
    outcome, step = guarded(
        job, run_dir, attempt, lambda stop, meter: _train(job, run_dir, attempt, scheme, train, probed, stop, meter)
    )
    on_rank_0(lambda: _finish(job, run_dir, scheme, Verdict(attempt=attempt, outcome=outcome, step=step)))
    return outcome


def _train(
    job: FinetuneJob,
    run_dir: Path,
    attempt: str,
    scheme: Scheme,
    train: Targets,
    probed: Targets,
    stop: StopFlag,
    meter: CostMeter,
) -> tuple[Outcome, int]:
    """How the attempt ended, and the step that is on disk."""
    whole = Manifest.open(job.data.url, access_of(job.data))
    manifest = whole.where([key in train for key in whole.keys])
    accumulation = shares(job.data.global_batch_size, job.data.micro_batch_size, world_size()).accumulation
    store = open_checkpoints(run_dir, job.trainer, access_of(job.data))
    resumed = on_rank_0(lambda: newest_step(job.trainer, store, run_dir))
    step = resumed[0] if resumed else 0
    if rank() == 0:
        log.info("attempt %s: %s step %d of %d", attempt, "resumes at" if resumed else "starts at", step, job.max_steps)
    if step >= job.max_steps:
        return Outcome.DONE, step
    record_environment(run_dir, attempt)
    torch.manual_seed(job.seed)
    fm, tokenizer = _encoder(job)
    student = AdaptedNetwork(fm, scheme.outputs, job.task.mode)
    if resumed is None:
        batch, series = job.data.micro_batch_size, job.data.max_series
        student.standardise(*on_rank_0(lambda: feature_moments(student, manifest, list(train), series, batch)))
    on_rank_0(lambda: keep_place(job.trainer, job.data, run_dir))
    module = TrainingModule(
        student=student,
        teacher=make_teacher(student),
        objective=TaskObjective(scheme, train),
        optim=job.optim,
        seed=job.seed,
        max_steps=job.max_steps,
        spikes=SpikeGuard(job.trainer.spike_sigma, job.trainer.spike_window),
        rates=student.rates(job.task.layer_decay) if job.encoder is not None else None,
    )
    probes = (
        [Validator(job.trainer, whole, scheme, probed, job.data.micro_batch_size, job.data.max_series)]
        if job.trainer.probe_every_steps
        else []
    )
    return fit(
        job,
        run_dir,
        attempt,
        module=module,
        stream=Stream(_batches(job, manifest, tokenizer, fm, step), accumulation),
        precision=resolve_precision(job.trainer),
        store=store,
        resumed=resumed,
        manifest=manifest,
        before=probes,
        stop=stop,
        meter=meter,
    )


def _batches(
    job: FinetuneJob, manifest: Manifest, tokenizer: PreTrainedTokenizerFast, fm: FmModel, step: int
) -> Iterable[StudyBatch]:
    depth, height, width = fm.config.patch_voxels
    return build_loader(
        manifest,
        views_of(job.data, fm),
        (depth, height, width),
        tokenizer,
        seed=job.seed,
        rank=rank(),
        world_size=world_size(),
        start_step=step,
        max_steps=job.max_steps,
    )


def views_of(data: DataConfig, fm: FmModel) -> DataConfig:
    """One global view, sampled as the encoder reads."""
    config = fm.config
    return replace(
        data,
        global_views=1,
        local_views=0,
        spacing_mm=config.spacing_mm,
        slice_spacing_mm=config.slice_spacing_mm,
        min_tissue=config.min_tissue,
    )


def _encoder(job: FinetuneJob) -> tuple[FmModel, PreTrainedTokenizerFast]:
    """The encoder to start from, or one with fresh weights; reports are not read, but the loader tokenises them."""
    if job.encoder is None:
        text = job.model if isinstance(job.model, VitTextConfig) else VitTextConfig()
        tokenizer = train_tokenizer((), job.data.vocabulary_size, 1, text.text_max_tokens)
        return build_model(job.model, job.data, len(tokenizer)), tokenizer
    loaded = load_encoder(job.encoder)
    return loaded.model, loaded.tokenizer or train_tokenizer((), job.data.vocabulary_size, 1, 8)


def _finish(job: FinetuneJob, run_dir: Path, scheme: Scheme, verdict: Verdict) -> None:
    if verdict.outcome is Outcome.DONE:
        out = run_dir / EXPORT
        store = open_checkpoints(run_dir, job.trainer, access_of(job.data))
        step, folder = find_step(store, store.best() if job.trainer.keep_best else None)
        weights, partial = job.trainer.export_weights, out.with_name(out.name + ".new")
        shutil.rmtree(partial, ignore_errors=True)
        facts = card_facts(job, run_dir, job.export.license)
        export_model(run_dir, partial, step, store=store, weights=weights, facts=facts)
        stored = load_file(folder / (TEACHER_FILE if weights is Weights.teacher else STUDENT_FILE))
        head = {name: value for name, value in stored.items() if name.startswith("head.")}
        save_file(head, partial / HEAD_FILE)
        (partial / TASK_FILE).write_text(json.dumps({**asdict(scheme), "step": step}, indent=1, ensure_ascii=False))
        if job.encoder is not None and (Path(job.encoder) / "tokenizer.json").is_file():
            load_tokenizer(Path(job.encoder)).save_pretrained(partial)
        # A run that was prolonged has an export of its earlier end.
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
        store.release()
    write_verdict(run_dir, verdict)
