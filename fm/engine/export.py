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
from fm.engine.checkpoint import CHECKPOINTS, CheckpointStore
from fm.engine.metrics import Row, read_metrics
from fm.engine.state import MODEL_FOLDER, STUDENT_FILE, TEACHER_FILE, read_state
from fm.models import FmConfig, FmModel

TOKENIZER = "tokenizer"
METRICS = "metrics.jsonl"
_PREFIX = "fm."


class ExportError(UserError):
    """An export that cannot be made."""


def export_model(
    run_dir: Path,
    out: Path,
    step: int | None = None,
    *,
    weights: Weights = Weights.teacher,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write the encoder of a run: configuration, float32 safetensors, tokenizer, metrics, cost, ``README.md``.

    Only safetensors and JSON of a verified checkpoint are read, never DeepSpeed's pickles.

    Args:
        run_dir: run folder of fm pretrain.
        out: folder to write; absent or empty.
        step: checkpoint to export; None for the newest good one.
        weights: the averaged teacher, or the student's masters.
        facts: lines for the model card, e.g. commit and licence.

    Returns:
        `out`.

    Raises:
        ExportError: `out` holds something already, or the checkpoint does not fit its own configuration.
        CheckpointError: no good checkpoint.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"out={out} exists and is not empty; name a new folder")
    store = CheckpointStore(run_dir / CHECKPOINTS)
    found = store.newest(required=True) if step is None else (step, store.verify(step))
    if found is None:
        raise ExportError(f"{run_dir} holds no checkpoint to export")
    step, folder = found
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
    rows = _rows_up_to(run_dir, step)
    (partial / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if cost := read_cost(run_dir):
        (partial / COST_FILE).write_text(json.dumps(cost, indent=1) + "\n", encoding="utf-8")
    (partial / "README.md").write_text(_card(rows, folder, step, weights, facts or {}), encoding="utf-8")
    if out.exists():
        out.rmdir()
    partial.rename(out)
    return out


def _rows_up_to(run_dir: Path, step: int) -> list[Row]:
    """Metrics of the steps that the exported weights have seen."""
    path = run_dir / METRICS
    return [row for row in read_metrics(path) if int(row["step"] or 0) <= step] if path.is_file() else []


def _card(rows: list[Row], folder: Path, step: int, weights: Weights, facts: Mapping[str, Any]) -> str:
    state = read_state(folder)
    config = json.loads((folder / MODEL_FOLDER / "config.json").read_text())
    entries = {
        "weights": f"{weights.value}, float32",
        "steps": step,
        "dataset id": state.dataset_id,
        "engine precision": state.precision,
        **facts,
        **_metrics(rows),
    }
    listed = "\n".join(f"| {name} | {value} |" for name, value in entries.items())
    licence = facts.get("licence", "unknown")
    return (
        f"---\nlibrary_name: transformers\nlicense: {licence}\ntags: [MRI, 3D, feature-extraction]\n---\n\n"
        "# 3D MRI encoder\n\n"
        "Encoder of MRI studies and radiology reports, trained by self-distillation and image–text contrast.\n"
        f"Input: patches of {'×'.join(map(str, config['patch_voxels']))} voxels (D×H×W), "
        f"{config['spacing_mm']} mm in-plane; see `config.json`.\n\n"
        '```python\nimport fm\n\nencoder = fm.load_encoder("THIS_FOLDER")\nencoder.embed("scan.nii.gz")\n```\n\n'
        "Research use: it has not been cleared for diagnosis.\n\n"
        f"| fact | value |\n| --- | --- |\n{listed}\n"
    )


def _metrics(rows: list[Row]) -> dict[str, str]:
    """Means over the last tenth of the run: a single batch is noise."""
    tail = rows[-max(1, len(rows) // 10) :]
    found = {}
    for name in ("loss", "self_distillation", "image_text", "image_text_top1"):
        values = [value for row in tail if isinstance(value := row.get(name), int | float)]
        if values:
            found[f"training {name}"] = f"{sum(values) / len(values):.4f}"
    return found
