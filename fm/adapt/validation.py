"""How good the averaged weights are while they are trained: probes on studies that are not trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from fm.adapt.network import VIEW, AdaptedNetwork
from fm.adapt.studies import read_series
from fm.adapt.targets import Scheme
from fm.config.trainer import TrainerConfig
from fm.data.index import Manifest
from fm.data.plan import stable_hash
from fm.engine.module import TrainingModule
from fm.parallel.collectives import gather_objects, rank, world_size
from fm.probes.metrics import balanced_accuracy, macro_auroc
from fm.probes.types import Floats


class Validator(pl.Callback):
    """Adds ``probe_…`` gauges to the row of metrics of every so many steps; put it before the recorder.

    The ranks share the studies; views are whole and unaugmented.
    """

    def __init__(
        self,
        config: TrainerConfig,
        manifest: Manifest,
        scheme: Scheme,
        targets: Mapping[str, float],
        batch: int,
        max_series: int,
    ) -> None:
        """Choose the studies.

        Args:
            config: how often, and of how many studies.
            manifest: where they lie.
            scheme: how outputs are read.
            targets: of the studies that may be probed, by key.
            batch: studies that are read at once.
            max_series: series of a study that are read.
        """
        self._every = config.probe_every_steps
        self._manifest, self._scheme, self._targets = manifest, scheme, targets
        self._batch, self._max_series = batch, max_series
        self._keys = sorted(targets, key=stable_hash)[: config.probe_studies]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Probe where it is due; the same on every rank."""
        if not isinstance(pl_module, TrainingModule) or pl_module.result is None:
            raise RuntimeError("a batch ended without a step")
        if pl_module.completed_steps % self._every:
            return
        found: dict[str, Floats] = {}
        for part in gather_objects(self._outputs(pl_module)):
            found |= part
        gauges = score(self._scheme, found, self._targets)
        pl_module.result.report |= {f"probe_{name}": torch.tensor(value) for name, value in gauges.items()}
        pl_module.phases.enter("record")

    @torch.no_grad()
    def _outputs(self, module: TrainingModule) -> dict[str, Floats]:
        """Outputs of this rank's studies; each rank makes as many passes, which sharded weights need."""
        network = module.teacher.module
        assert isinstance(network, AdaptedNetwork)
        mine = self._keys[rank() :: world_size()]
        found: dict[str, Floats] = {}
        for first in range(0, math.ceil(len(self._keys) / world_size()), self._batch):
            module.phases.enter("probe")  # anew for each batch: it is no hang
            chunk = mine[first : first + self._batch]
            images = {key: read for key in chunk if (read := read_series(self._manifest, key, self._max_series))}
            pack = network.fm.pack_series(list(images.values()))
            out = network({VIEW: pack}, len(images)).logits[VIEW].double().cpu().numpy()
            found |= dict(zip(images, out, strict=True))
        return found


def score(scheme: Scheme, outputs: Mapping[str, Floats], targets: Mapping[str, float]) -> dict[str, float]:
    """Macro AUROC and balanced accuracy of classes; R² and mean absolute error, in the label's unit, of a number."""
    if not outputs:
        return {}
    keys = sorted(outputs)
    out_NK = np.stack([outputs[key] for key in keys])
    truth_N = np.array([targets[key] for key in keys])
    if scheme.classes:
        ones, classes_N = np.ones((1, len(keys)), dtype=np.int64), truth_N.astype(np.int64)
        shares_NK = np.exp(out_NK - out_NK.max(1, keepdims=True))
        shares_NK /= shares_NK.sum(1, keepdims=True)
        return {
            "auroc": float(macro_auroc(shares_NK, classes_N, ones)[0]),
            "balanced_accuracy": float(balanced_accuracy(shares_NK.argmax(1), classes_N, ones)[0]),
        }
    error_N, spread = out_NK[:, 0] - truth_N, float(np.square(truth_N - truth_N.mean()).sum())
    r2 = 1 - float(np.square(error_N).sum()) / spread if spread else math.nan
    return {"r2": r2, "mae": float(np.abs(error_N).mean()) * scheme.scale}
