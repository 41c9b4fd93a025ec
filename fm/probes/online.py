"""Gauges of frozen features that are cheap enough to be taken while a model trains: no tuning, no bootstrap.

Shape legend: N studies, D features, E width of the image–text space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fm.probes.knn import votes
from fm.probes.metrics import balanced_accuracy
from fm.probes.retrieval import recall, worst_ranks
from fm.probes.scaling import Scaler
from fm.probes.types import Floats, Ints

RECALL_AT = 5
NEIGHBOURS = 10


def retrieval_recall(image_NE: Floats, text_NE: Floats, texts_N: Ints) -> dict[str, float]:
    """R@5 in both directions and their mean; equal reports are equally right, and a tie counts against the encoder.

    Args:
        image_NE: unit embeddings of the studies.
        text_NE: unit embeddings of their reports.
        texts_N: what tells reports apart: a hash of each.

    Returns:
        ``report_to_image_r5``, ``image_to_report_r5``, ``retrieval_r5``; NaN for fewer than two studies.
    """
    if len(texts_N) < 2:
        return dict.fromkeys(("report_to_image_r5", "image_to_report_r5", "retrieval_r5"), math.nan)
    relevant, once = texts_N[:, None] == texts_N[None, :], np.ones((1, len(texts_N)), dtype=np.int64)
    scores = text_NE @ image_NE.T
    by_report, by_image = (
        float(recall(worst_ranks(turned, relevant), RECALL_AT, once)[0]) for turned in (scores, scores.T)
    )
    return {
        "report_to_image_r5": by_report,
        "image_to_report_r5": by_image,
        "retrieval_r5": (by_report + by_image) / 2,
    }


def neighbours_accuracy(features_ND: Floats, labels_N: Ints, patients_N: Sequence[str]) -> float:
    """Balanced accuracy of the nearest neighbours among the studies of all other patients; NaN for a single class.

    Args:
        features_ND: frozen features; standardised over all rows, which knows no label, and scaled to unit length.
        labels_N: class of each study, 0 … K−1.
        patients_N: whose studies they are.
    """
    classes = int(labels_N.max(initial=-1)) + 1
    if len(np.unique(labels_N)) < 2:
        return math.nan
    unit, owner = Scaler.fit(features_ND).unit(features_ND), np.asarray(patients_N)
    predicted = np.zeros(len(labels_N), dtype=np.int64)
    for row in range(len(labels_N)):
        others = owner != owner[row]
        if others.any():
            (share,) = votes(unit[row : row + 1], unit[others], labels_N[others], classes, [NEIGHBOURS])
            predicted[row] = int(share[0].argmax())
    return float(balanced_accuracy(predicted, labels_N, np.ones((1, len(labels_N)), dtype=np.int64))[0])
