"""How the encoder was trained, as far as its folder says: curves from the metrics copied beside the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fm.engine.account import COST_FILE
from fm.engine.metrics import Row, read_metrics

METRICS = "metrics.jsonl"
RUN_FILE = "../run.yaml"
"""Beside the export that fm pretrain leaves in its run folder; an export elsewhere carries no run.yaml, whose paths are
nobody else's business."""
CURVES = (
    "loss",
    "image_text",
    "self_distillation",
    "koleo",
    "image_text_top1",
    "target_entropy",
    "target_top1_share",
    "prototypes_used",
    "gradient_norm",
    "learning_rate",
    "volumes_per_s",
)
"""What is drawn, in this order; any other loss of a run (`*_loss`) follows."""
MAX_POINTS = 300


def read_training(encoder: Path) -> dict[str, Any]:
    """Curves and a summary of the run that an encoder comes from.

    Args:
        encoder: the exported folder.

    Returns:
        ``curves`` (name: step and value lists), ``summary`` (words: numbers), ``cost`` (as
        :func:`fm.engine.cost.read_cost` gives it) and ``configuration``; each is empty where the folder holds nothing
        of it.
    """
    rows = read_metrics(encoder / METRICS) if (encoder / METRICS).is_file() else []
    rows = [row for row in rows if row.get("applied", True)]
    names = {name for row in rows for name in row}
    wanted = [n for n in CURVES if n in names] + sorted(n for n in names - set(CURVES) if n.endswith("_loss"))
    curves = {}
    for name in wanted:
        pairs = [(int(r["step"] or 0), float(r[name] or 0.0)) for r in rows if _is_number(r.get(name))]
        if len(pairs) > 1:
            thinned = _thin(pairs)
            curves[name] = {"step": [s for s, _ in thinned], "value": [v for _, v in thinned]}
    return {
        "curves": curves,
        "summary": _summary(rows),
        "cost": _loaded(encoder / COST_FILE),
        "configuration": _loaded(encoder / RUN_FILE),
    }


def _summary(rows: list[Row]) -> dict[str, float]:
    if not rows:
        return {}
    first, last = rows[0], rows[-1]
    found: dict[str, float] = {"Steps": float(last["step"] or 0)}
    for words, name, row in (("Loss at the start", "loss", first), ("Loss at the end", "loss", last)):
        if _is_number(row.get(name)):
            found[words] = float(row[name] or 0.0)
    speeds = [float(r["volumes_per_s"] or 0.0) for r in rows if _is_number(r.get("volumes_per_s"))]
    if speeds:
        found["Volumes per second, median"] = float(np.median(speeds))
    volumes = [float(r["volumes"] or 0.0) for r in rows if _is_number(r.get("volumes"))]
    if volumes:
        found["Volumes seen, about"] = float(np.mean(volumes) * float(last["step"] or 0))
    return found


def _loaded(path: Path) -> dict[str, Any]:
    """What a YAML or JSON file holds; nothing where there is none, or a broken one."""
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _thin(pairs: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most about MAX_POINTS points, evenly chosen, the last one among them."""
    stride = -(-len(pairs) // MAX_POINTS)
    return [pair for i, pair in enumerate(pairs) if (len(pairs) - 1 - i) % stride == 0]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
