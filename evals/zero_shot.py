"""Classification without a fitted probe: a scan is nearer to sentences that state a finding than to those that deny it.

Prompt ensembles with pairs of statement and denial, as CheXzero does (Tiu et al. 2022, Nature Biomedical Engineering).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from evals.results import Score, System
from evals.tasks import Task
from fm.config.suite import SuiteConfig
from fm.probes.bootstrap import interval, patient_weights
from fm.probes.metrics import auroc, balanced_accuracy, roc_points
from fm.probes.types import Floats

PROBE = "zero-shot"

EmbedTexts = Callable[[Sequence[str]], Floats | None]
"""(n, E) unit embeddings of sentences; None where the encoder reads no text."""


def zero_shot(task: Task, image_NE: Floats, embed: EmbedTexts, suite: SuiteConfig, linear_R: Floats) -> Score | None:
    """The score of a two-class task from its prompts; None where it has none, or where the encoder reads no text.

    Args:
        task: rows, classes and prompts.
        image_NE: unit embeddings of the studies, zeros for one without series.
        embed: gives the sentences' embeddings.
        suite: statistics.
        linear_R: linear-probe AUROC of this encoder per bootstrap draw, which the score is held against.
    """
    config = task.config
    if not config.prompts_positive:
        return None
    text = embed([*config.prompts_positive, *config.prompts_negative])
    if text is None:
        return None
    count = len(config.prompts_positive)
    margin_N = image_NE[task.test_rows] @ (_centre(text[:count]) - _centre(text[count:]))
    labels = task.test_labels
    weights_RN = patient_weights(task.test_patients, suite.bootstrap_draws, suite.seed)
    draws = auroc(margin_N, labels == 1, weights_RN)
    accuracy = balanced_accuracy((margin_N > 0).astype(np.int64), labels, weights_RN)
    return Score(
        system=System.ENCODER,
        probe=PROBE,
        setting=None,
        auroc=interval(draws, suite.confidence),
        balanced_accuracy=interval(accuracy, suite.confidence),
        auroc_difference=interval(linear_R - draws, suite.confidence),
        roc=roc_points(margin_N, labels == 1),
    )


def _centre(text_NE: Floats) -> Floats:
    """Mean direction of an ensemble, length 1."""
    mean = text_NE.mean(axis=0)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12))
