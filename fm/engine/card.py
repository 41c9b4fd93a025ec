"""The model card of an export: a README.md as the model hub reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fm.config.jobs.training import TrainingJob
from fm.config.load import plain, read
from fm.config.trainer import Weights
from fm.engine.metrics import Row
from fm.engine.places import RUN_FILE
from fm.engine.state import MODEL_FOLDER, RunState, read_state

_SHOWN = ("model", "objective", "task", "optim", "data")
"""Sections of the configuration that made the weights what they are."""
_TRAINING = ("loss", "self_distillation", "image_text", "image_text_top1")


def model_card(rows: Sequence[Row], folder: Path, weights: Weights, facts: Mapping[str, Any]) -> str:
    """The card of one checkpoint.

    Args:
        rows: metrics up to its step.
        folder: its files.
        weights: which of the two networks is exported.
        facts: further lines, e.g. commit and seed; ``licence`` goes into the head, ``configuration`` (plain values of
            the run) into a part of its own, without any path.
    """
    state = read_state(folder)
    model = json.loads((folder / MODEL_FOLDER / "config.json").read_text(encoding="utf-8"))
    further = {name: value for name, value in facts.items() if name not in ("licence", "configuration")}
    about = {
        "weights": f"{weights.value}, float32",
        "steps": state.step,
        "dataset id": state.dataset_id,
        **{f"training {name}": f"{count:,}" for name, count in state.counts.items()},
        "engine precision": state.precision,
        "layout": f"ZeRO-{state.stage}, {state.world_size} processes",
        **further,
    }
    head = {
        "library_name": "transformers",
        "license": str(facts.get("licence", "unknown")),
        "tags": ["MRI", "3D", "feature-extraction"],
    }
    parts = [
        "---\n" + yaml.safe_dump(head, sort_keys=False, default_flow_style=None) + "---\n",
        "# 3D MRI encoder\n",
        "Encoder of MRI studies and radiology reports, trained by self-distillation and image–text contrast.\n"
        f"Input: patches of {'×'.join(map(str, model['patch_voxels']))} voxels (D×H×W), "
        f"{model['spacing_mm']} mm in-plane; see `config.json`.\n",
        '```python\nimport fm\n\nencoder = fm.load_encoder("THIS_FOLDER")\nencoder.embed("scan.nii.gz")\n```\n',
        "Research use: it has not been cleared for diagnosis.\n",
        "## What it is\n",
        _table(about),
        "## Metrics\n",
        "Of training, not of an evaluation; `metrics.jsonl` holds every step.\n",
        _table(_metrics(rows, state)),
    ]
    if shown := _configuration(facts.get("configuration", {})):
        parts += ["## Configuration\n", f"```yaml\n{yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)}```\n"]
    return "\n".join(parts)


def card_facts(job: TrainingJob, run_dir: Path, licence: str) -> dict[str, Any]:
    """What a run has to say in the model card of its export."""
    about, values = read(run_dir / RUN_FILE) if (run_dir / RUN_FILE).is_file() else ({}, plain(job))
    commit = about.get("commit", "unknown")
    return {"commit": commit, "seed": job.seed, "licence": licence, "configuration": values}


def _table(entries: Mapping[str, Any]) -> str:
    listed = "\n".join(f"| {name} | {value} |" for name, value in entries.items())
    return f"| fact | value |\n| --- | --- |\n{listed}\n"


def _metrics(rows: Sequence[Row], state: RunState) -> dict[str, str]:
    """Means over the last tenth of the run, as a single batch is noise, and the newest of each online probe."""
    tail = rows[-max(1, len(rows) // 10) :]
    found = {}
    for name in _TRAINING:
        values = [value for row in tail if isinstance(value := row.get(name), int | float)]
        if values:
            found[f"training {name}"] = f"{sum(values) / len(values):.4f}"
    probes = {name for row in rows for name in row if name.startswith("probe_") and name != "probe_s"}
    for name in sorted(probes):
        probed = [row for row in rows if isinstance(row.get(name), int | float)]
        if probed:
            found[f"{name} at step {probed[-1]['step']}"] = f"{probed[-1][name]:.4f}"
    if "loss" in state.gauges:
        found[f"loss at step {state.step}"] = f"{state.gauges['loss']:.4f}"
    return found


def _configuration(values: Mapping[str, Any]) -> dict[str, Any]:
    """The sections that matter, without texts that hold a path: those are about the machine, not the model."""
    return {name: _without_paths(values[name]) for name in _SHOWN if name in values}


def _without_paths(section: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _without_paths(value) if isinstance(value, Mapping) else value
        for name, value in section.items()
        if not (isinstance(value, str) and ("/" in value or "\\" in value))
    }
