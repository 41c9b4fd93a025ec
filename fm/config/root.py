"""The job of every verb, and what the command line asks about jobs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fm.config import registry
from fm.config.jobs.cluster import (
    DoctorJob,
    JobsCancelJob,
    JobsListJob,
    JobsLogsJob,
    JobsResubmitJob,
    SubmitJob,
)
from fm.config.jobs.datasets import (
    FindingsScoreJob,
    FindingsSheetJob,
    IndexJob,
    InspectJob,
    PhantomJob,
    PrepareJob,
    VerifyJob,
    WithdrawJob,
)
from fm.config.jobs.demo import (
    DemoJob,
)
from fm.config.jobs.evaluation import (
    EmbedJob,
    EvaluateJob,
    PredictJob,
)
from fm.config.jobs.training import (
    CheckpointConvertJob,
    CheckpointListJob,
    CheckpointVerifyJob,
    ExportJob,
    FinetuneJob,
    PretrainJob,
    RunsListJob,
    RunsShowJob,
)

JOBS: dict[str, type] = {
    "phantom": PhantomJob,
    "prepare": PrepareJob,
    "index": IndexJob,
    "verify": VerifyJob,
    "inspect": InspectJob,
    "withdraw": WithdrawJob,
    "pretrain": PretrainJob,
    "finetune": FinetuneJob,
    "export": ExportJob,
    "evaluate": EvaluateJob,
    "embed": EmbedJob,
    "predict": PredictJob,
    "demo": DemoJob,
    "submit": SubmitJob,
    "jobs list": JobsListJob,
    "jobs logs": JobsLogsJob,
    "jobs cancel": JobsCancelJob,
    "jobs resubmit": JobsResubmitJob,
    "doctor": DoctorJob,
    "findings sheet": FindingsSheetJob,
    "findings score": FindingsScoreJob,
    "runs list": RunsListJob,
    "runs show": RunsShowJob,
    "checkpoint list": CheckpointListJob,
    "checkpoint verify": CheckpointVerifyJob,
    "checkpoint convert": CheckpointConvertJob,
}
"""The job of every verb, in the order of the help."""


def plain_form(job: type) -> str:
    """The shortest useful command line of a job class."""
    return str(vars(job)["plain_form"])


def filled_keys(job: type) -> tuple[str, ...]:
    """Dotted keys that the verb fills itself, so that nobody has to, or may, give them."""
    return tuple(vars(job).get("filled", ()))


def group_options(verb: str, config_dirs: Iterable[Path] = ()) -> dict[str, list[str]]:
    """The groups of a verb with the options they offer; ``experiment`` belongs to every verb that has a group."""
    keys = registry.keys(JOBS[verb])
    own = [name for name in registry.GROUPS if name in keys and registry.is_section(keys[name].type)]
    found = {name: registry.options(name, config_dirs) for name in (["experiment", *own] if own else [])}
    return {name: names for name, names in found.items() if names}
