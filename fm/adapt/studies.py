"""Whole studies for a network: what a probe reads, and what the head's features are standardised by."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from fm.adapt.network import AdaptedNetwork
from fm.data.codec import CodecError
from fm.data.index import DatasetError, Manifest
from fm.data.plan import stable_hash
from fm.data.sample import SampleError
from fm.data.volume import SeriesImage, from_sample
from fm.probes.types import Floats

log = logging.getLogger(__name__)

MOMENT_STUDIES = 256


def read_series(manifest: Manifest, key: str, max_series: int) -> list[SeriesImage] | None:
    """The first series of a study; None, and a warning, where they cannot be read."""
    try:
        series = manifest.study(key).series[:max_series]
        return [from_sample(one, manifest.read(key, f"{one.name}.b2")) for one in series]
    except (DatasetError, CodecError, SampleError) as err:
        log.warning("left out: study %s: %s", key, err)
        return None


@torch.no_grad()
def feature_moments(
    network: AdaptedNetwork, manifest: Manifest, keys: Sequence[str], max_series: int, batch: int
) -> tuple[Floats, Floats]:
    """(F,) mean and standard deviation of the features of at most 256 of the studies, under the network as it is."""
    chosen = sorted(keys, key=stable_hash)[:MOMENT_STUDIES]
    training = network.training
    network.eval()
    parts = []
    for first in range(0, len(chosen), batch):
        images = [found for key in chosen[first : first + batch] if (found := read_series(manifest, key, max_series))]
        if images:
            parts.append(network.features(network.fm.pack_series(images), len(images)).double().cpu().numpy())
    network.train(training)
    if not parts:
        raise DatasetError(f"{manifest.url}: none of the {len(chosen)} studies to begin with can be read")
    found_NF = np.concatenate(parts)
    spread_F = found_NF.std(0)
    # A feature that hardly differs between studies must not be blown up.
    return found_NF.mean(0), np.maximum(spread_F, 1e-2 * float(spread_F.mean()) + 1e-6)
