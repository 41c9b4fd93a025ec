"""One worker's part of a pretraining run."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from fm.config.jobs.training import PretrainJob
from fm.config.model import VitTextConfig
from fm.config.objective import JointConfig
from fm.data.index import Manifest
from fm.data.phrases import PhraseTable, common_phrases
from fm.data.plan import shares
from fm.data.reader import build_loader
from fm.data.store import access_of
from fm.data.tokenizer import load_tokenizer, train_tokenizer, training_reports
from fm.engine.attempt import fit, guarded, keep_place, newest_step, on_rank_0
from fm.engine.card import card_facts
from fm.engine.cost import CostMeter
from fm.engine.environment import record_environment
from fm.engine.export import TOKENIZER, export_model
from fm.engine.module import TrainingModule
from fm.engine.places import open_checkpoints
from fm.engine.signals import StopFlag
from fm.engine.spikes import SpikeGuard
from fm.engine.trainer import Stream
from fm.engine.verdict import Outcome, Verdict, write_verdict
from fm.objectives import StudentModule, build_objective, build_student, make_teacher
from fm.parallel.collectives import rank, world_size
from fm.parallel.hardware import resolve_precision
from fm.pretrain.probe import Prober

log = logging.getLogger(__name__)

EXPORT = "export"
PHRASES = "phrases.json"


def pretrain(job: PretrainJob, run_dir: Path, attempt: str = "1") -> Outcome:
    """Train until the last step or a stop signal; every worker process calls it with the same arguments.

    The run folder receives ``environment/``, ``cost/``, ``tokenizer/``, ``checkpoints/``, ``metrics.jsonl``,
    ``skipped.jsonl`` where steps were skipped, ``stacks/`` after a hang, ``verdict.json`` and, at the end, ``export/``.
    A folder with checkpoints is resumed.

    Args:
        job: the configuration.
        run_dir: the run folder; it exists.
        attempt: name of this attempt, for metrics, tracker and verdict.

    Returns:
        ``DONE``, or ``REQUEUE`` after a stop signal.

    Raises:
        UserError: data, batch sizes, hardware or checkpoints do not allow the run; training that only produces NaN.
    """
    outcome, step = guarded(job, run_dir, attempt, lambda stop, meter: _train(job, run_dir, attempt, stop, meter))
    on_rank_0(lambda: _finish(job, run_dir, Verdict(attempt=attempt, outcome=outcome, step=step)))
    return outcome


def _train(job: PretrainJob, run_dir: Path, attempt: str, stop: StopFlag, meter: CostMeter) -> tuple[Outcome, int]:
    """How the attempt ended, and the step that is on disk."""
    whole = Manifest.open(job.data.url, access_of(job.data))
    manifest = whole.select(split=job.data.split)
    accumulation = shares(job.data.global_batch_size, job.data.micro_batch_size, world_size()).accumulation
    tokenizer = _tokenizer(job, manifest, run_dir)
    store = open_checkpoints(run_dir, job.trainer, access_of(job.data))
    resumed = on_rank_0(lambda: newest_step(job.trainer, store, run_dir))
    step = resumed[0] if resumed else 0
    if rank() == 0:
        log.info("attempt %s: %s step %d of %d", attempt, "resumes at" if resumed else "starts at", step, job.max_steps)
    if step >= job.max_steps:
        return Outcome.DONE, step
    record_environment(run_dir, attempt)
    torch.manual_seed(job.seed)
    phrases = _phrases(job, manifest, tokenizer, run_dir)
    shares_K = phrases.shares if phrases else ()
    student = build_student(job.model, job.objective, job.data, len(tokenizer), shares_K)
    on_rank_0(lambda: keep_place(job.trainer, job.data, run_dir))
    module = _module(job, student)
    return fit(
        job,
        run_dir,
        attempt,
        module=module,
        stream=Stream(_batches(job, manifest, tokenizer, phrases, student, step), accumulation),
        precision=resolve_precision(job.trainer),
        store=store,
        resumed=resumed,
        manifest=manifest,
        before=_probe(job, whole, tokenizer),
        stop=stop,
        meter=meter,
    )


def _tokenizer(job: PretrainJob, manifest: Manifest, run_dir: Path) -> PreTrainedTokenizerFast:
    """The run's tokenizer: the one of `model.text_from`, or one trained once on the reports of the training split.

    Without reports it knows letters only.
    """
    folder = run_dir / TOKENIZER

    def train() -> None:
        if folder.is_dir():
            return
        model = job.model if isinstance(job.model, VitTextConfig) else VitTextConfig()
        limit = model.text_max_tokens
        if model.text_from:
            tokenizer = load_tokenizer(model.text_from)
            tokenizer.model_max_length = min(limit, tokenizer.model_max_length)
        else:
            tokenizer = train_tokenizer(
                training_reports(manifest), job.data.vocabulary_size, job.data.min_patients_per_word, limit
            )
        partial = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(partial, ignore_errors=True)
        tokenizer.save_pretrained(partial)
        partial.rename(folder)

    on_rank_0(train)
    return load_tokenizer(folder)


def _phrases(
    job: PretrainJob, manifest: Manifest, tokenizer: PreTrainedTokenizerFast, run_dir: Path
) -> PhraseTable | None:
    """The phrases to predict, counted once in a run; None where none are asked for or no report has any."""
    objective = job.objective
    if not isinstance(objective, JointConfig) or objective.phrase_weight == 0:
        return None
    low, high, path = objective.phrase_min_share, objective.phrase_max_share, run_dir / PHRASES

    def count() -> None:
        if not path.is_file():
            table = common_phrases((text for _, text in training_reports(manifest)), tokenizer, low, high)
            partial = path.with_name(path.name + ".tmp")
            table.save(partial)
            partial.rename(path)

    on_rank_0(count)
    table = PhraseTable.load(path)
    return table if table.phrases else None


def _module(job: PretrainJob, student: StudentModule) -> TrainingModule:
    return TrainingModule(
        student=student,
        teacher=make_teacher(student),
        objective=build_objective(job.objective),
        optim=job.optim,
        seed=job.seed,
        max_steps=job.max_steps,
        spikes=SpikeGuard(job.trainer.spike_sigma, job.trainer.spike_window),
    )


def _probe(job: PretrainJob, manifest: Manifest, tokenizer: PreTrainedTokenizerFast) -> list[Prober]:
    """The online probe, where one is asked for."""
    if not job.trainer.probe_every_steps:
        return []
    return [Prober(job.trainer, manifest, tokenizer, job.data.micro_batch_size, job.data.max_series)]


def _batches(
    job: PretrainJob,
    manifest: Manifest,
    tokenizer: PreTrainedTokenizerFast,
    phrases: PhraseTable | None,
    student: StudentModule,
    step: int,
) -> Any:
    depth, height, width = student.fm.config.patch_voxels
    return build_loader(
        manifest,
        job.data,
        (depth, height, width),
        tokenizer,
        seed=job.seed,
        rank=rank(),
        world_size=world_size(),
        start_step=step,
        max_steps=job.max_steps,
        phrases=phrases,
    )


def _finish(job: PretrainJob, run_dir: Path, verdict: Verdict) -> None:
    if verdict.outcome is Outcome.DONE:
        # A run that was prolonged has an export of its earlier end.
        shutil.rmtree(run_dir / EXPORT, ignore_errors=True)
        store = open_checkpoints(run_dir, job.trainer, access_of(job.data))
        weights, facts = job.trainer.export_weights, card_facts(job, run_dir, job.export.license)
        export_model(run_dir, run_dir / EXPORT, store=store, weights=weights, facts=facts)
        store.release()
    write_verdict(run_dir, verdict)
