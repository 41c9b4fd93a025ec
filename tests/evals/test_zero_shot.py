from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from evals.suite import evaluate
from evals.tasks import Task
from evals.zero_shot import zero_shot
from fm.config.errors import ConfigError
from fm.config.suite import SuiteConfig, TaskConfig
from fm.probes.types import Floats

PROMPTS = {"prompts_positive": ["a lesion", "a mass"], "prompts_negative": ["no lesion"]}


def _task(labels: Sequence[int]) -> Task:
    rows = np.arange(len(labels))
    config = TaskConfig(label="lesion", positive=["1"], negative=["0"], **PROMPTS)
    return Task(
        name="lesion",
        config=config,
        classes=["negative", "positive"],
        fit_rows=rows[:0],
        fit_labels=rows[:0],
        fit_patients=[],
        test_rows=rows,
        test_labels=np.array(labels),
        test_patients=[f"p{row // 2}" for row in rows],
    )


def _unit(rng: np.random.Generator, rows: int) -> Floats:
    x = rng.standard_normal((rows, 5))
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def test_the_margin_between_statement_and_denial_is_scored() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=40)
    text = {"a lesion": _unit(rng, 1)[0], "a mass": _unit(rng, 1)[0], "no lesion": _unit(rng, 1)[0]}
    image = _unit(rng, 40)
    suite = SuiteConfig(bootstrap_draws=200)
    linear = np.full(201, 0.7)
    found = zero_shot(_task(labels), image, lambda words: np.stack([text[w] for w in words]), suite, linear)
    assert found is not None
    said = (text["a lesion"] + text["a mass"]) / 2
    margin = [float(x @ said / np.sqrt(said @ said) - x @ text["no lesion"]) for x in image]
    assert found.auroc.value == pytest.approx(roc_auc_score(labels, margin))
    right = np.array(margin) > 0
    assert found.balanced_accuracy.value == pytest.approx(
        (right[labels == 1].mean() + 1 - right[labels == 0].mean()) / 2
    )
    assert found.auroc_difference is not None and found.auroc_difference.value == pytest.approx(
        0.7 - found.auroc.value, abs=1e-9
    )


@pytest.mark.parametrize(
    ("turn", "auroc"),
    [(lambda labels: labels, 1.0), (lambda labels: 1 - labels, 0.0), (lambda labels: labels * 0, 0.5)],
)
def test_agreement_contradiction_and_a_collapsed_encoder(
    turn: Callable[[np.ndarray], np.ndarray], auroc: float
) -> None:
    labels = np.arange(20) % 2
    image = np.eye(2)[turn(labels)]
    embed = {"a lesion": [0.0, 1.0], "a mass": [0.0, 1.0], "no lesion": [1.0, 0.0]}
    found = zero_shot(
        _task(labels),
        image,
        lambda words: np.array([embed[w] for w in words]),
        SuiteConfig(bootstrap_draws=50),
        np.full(51, 0.5),
    )
    assert found is not None and found.auroc.value == pytest.approx(auroc)


def test_without_prompts_or_a_text_side_there_is_no_score() -> None:
    task = _task([0, 1])
    assert zero_shot(task, np.eye(2), lambda words: None, SuiteConfig(), np.zeros(1)) is None
    task.config.prompts_positive = []
    assert zero_shot(task, np.eye(2), lambda words: np.eye(2), SuiteConfig(), np.zeros(1)) is None


def test_the_suite_writes_it_beside_the_probes(dataset: str, encoder_dir: Path, tmp_path: Path) -> None:
    task = TaskConfig(question="Lesion?", label="lesion", positive=["1"], negative=["0"], **PROMPTS)
    suite = SuiteConfig(tasks={"lesion": task}, bootstrap_draws=50, folds=3, linear_c=[1.0], neighbours=[5])
    results = evaluate(encoder_dir, dataset, tmp_path, suite)
    assert results.tasks[0].scores[-1].probe == "zero-shot"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "by 2 sentences that state it against 1 that deny it" in page


def test_prompts_come_in_pairs_for_two_classes_of_a_study() -> None:
    with pytest.raises(ConfigError, match="both `prompts_positive` and `prompts_negative`"):
        TaskConfig(label="lesion", positive=["1"], negative=["0"], prompts_positive=["a lesion"])
    with pytest.raises(ConfigError, match="prompts need `positive` and `negative` values"):
        TaskConfig(label="kind", **PROMPTS)
