"""From a checkpoint to a folder that plain transformers loads: configuration, safetensors, tokenizer, model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from fm.config.errors import UserError
from fm.config.trainer import Weights
from fm.engine.account import COST_FILE, read_cost
from fm.engine.card import model_card
from fm.engine.checkpoint import CHECKPOINTS, CheckpointError, Checkpoints, CheckpointStore
from fm.engine.metrics import METRICS, Row, read_metrics
from fm.engine.state import MODEL_FOLDER, STUDENT_FILE, TEACHER_FILE
from fm.models import FmConfig, FmModel

TOKENIZER = "tokenizer"
_PREFIX = "fm."


class ExportError(UserError):
    """An export that cannot be made."""


def export_model(
    run_dir: Path,
    out: Path,
    step: int | None = None,
    *,
    store: Checkpoints[Any] | None = None,
    weights: Weights = Weights.teacher,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write the encoder of a run: configuration, float32 safetensors, tokenizer, metrics, cost, ``README.md``.

    Only safetensors and JSON of a verified checkpoint are read, never DeepSpeed's pickles.

    Args:
        run_dir: run folder of fm pretrain.
        out: folder to write; absent or empty.
        step: checkpoint to export; None for the newest good one.
        store: where the checkpoints lie; None: in the run folder.
        weights: the averaged teacher, or the student's masters.
        facts: lines for the model card, e.g. the commit; ``licence`` and ``configuration`` have places of their own.

    Returns:
        `out`.

    Raises:
        ExportError: `out` holds something already, or the checkpoint does not fit its own configuration.
        CheckpointError: no good checkpoint, or not the one that was asked for; the message lists those that are.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"out={out} exists and is not empty; name a new folder")
    step, folder = find_step(store or CheckpointStore(run_dir / CHECKPOINTS), step)
    model = FmModel(FmConfig.from_pretrained(folder / MODEL_FOLDER))
    stored = load_file(folder / (TEACHER_FILE if weights is Weights.teacher else STUDENT_FILE))
    values = {name.removeprefix(_PREFIX): value for name, value in stored.items() if name.startswith(_PREFIX)}
    problems = model.load_state_dict(values, strict=False)
    if wrong := [*problems.missing_keys, *problems.unexpected_keys]:
        raise ExportError(f"checkpoint {folder}: {wrong[0]} does not fit its own configuration")
    partial = out.with_name(out.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save_pretrained(partial)
    if (run_dir / TOKENIZER).is_dir():
        shutil.copytree(run_dir / TOKENIZER, partial, dirs_exist_ok=True)
    rows = _rows_up_to(folder if (folder / METRICS).is_file() else run_dir, step)
    (partial / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if cost := read_cost(run_dir):
        (partial / COST_FILE).write_text(json.dumps(cost, indent=1) + "\n", encoding="utf-8")
    (partial / "README.md").write_text(model_card(rows, folder, weights, facts or {}), encoding="utf-8")
    if out.exists():
        out.rmdir()
    partial.rename(out)
    return out


def find_step(store: Checkpoints[Any], step: int | None) -> tuple[int, Path]:
    """The step that is asked for, or the newest good one, with its verified folder.

    Raises:
        CheckpointError: it is not there (the message lists those that are), or damaged.
    """
    if step is not None:
        return step, store.chosen(step)
    found = store.newest(required=False)
    if found is None:
        raise CheckpointError(f"{store.where} holds no committed checkpoint")
    return found


def _rows_up_to(run_dir: Path, step: int) -> list[Row]:
    """Metrics of the steps that the exported weights have seen."""
    path = run_dir / METRICS
    return [row for row in read_metrics(path) if int(row["step"] or 0) <= step] if path.is_file() else []
