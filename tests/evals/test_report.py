from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import pytest

from evals import figures
from evals.report import render
from evals.results import Results, Score, System, TaskResult
from evals.training import read_training
from fm.engine.account import COST_FILE, AttemptCost, read_cost
from fm.probes.bootstrap import Interval


def interval(value: float, half: float = 0.05) -> Interval:
    return Interval(value=value, low=value - half, high=value + half)


def task(mine: float, theirs: float) -> TaskResult:
    scores = []
    for probe in ("linear", "knn"):
        for system, value in ((System.ENCODER, mine), (System.INTENSITY, theirs)):
            gain = None if system is System.ENCODER else interval(mine - theirs)
            scores.append(
                Score(
                    system=system,
                    probe=probe,
                    setting=1.0,
                    auroc=interval(value),
                    balanced_accuracy=interval(0.5),
                    auroc_difference=gain,
                    roc=[(0.0, 0.0), (0.2, 0.7), (1.0, 1.0)],
                )
            )
    return TaskResult(
        name="t",
        question="Is <it> there?",
        level="study",
        region=None,
        classes=["negative", "positive"],
        bar=False,
        train={"negative": 5, "positive": 6},
        test={"negative": 7, "positive": 8},
        test_patients=15,
        note="",
        scores=scores,
    )


def results(tasks: list[TaskResult]) -> Results:
    counts = {"patients": 1, "studies": 1, "series": 1, "reports": 0}
    groups: dict[str, dict[str, int]] = {n: {} for n in ("region", "sex", "contrast", "vendor", "field strength")}
    return Results(
        created_utc="2026-01-01 00:00",
        commit="c",
        versions={},
        encoder={"name": "enc", "weights_sha256": "f" * 64, "image_parameters": 10, "config": {}},
        dataset={"id": "d", "versions": {}, "unreadable": [], "train": counts | groups, "test": counts | groups},
        suite={
            "confidence": 0.95,
            "folds": 5,
            "bootstrap_draws": 1000,
            "seed": 0,
            "min_gallery": 50,
            "relevance_label": "findings",
            "lesion_label": "lesion",
        },
        bars=[],
        tasks=tasks,
        retrieval=[],
        examples=[],
        skipped=[],
        training={"curves": {}, "summary": {}, "cost": {}, "configuration": {}},
        seconds={},
    )


def test_a_baseline_that_does_better_is_named_and_one_within_chance_is_not() -> None:
    page = render(results([task(0.6, 0.9)]), {}, [])
    assert "Where a baseline does better" in page and "pixel statistics 0.900, this encoder 0.600" in page
    assert "Where a baseline does better" not in render(results([task(0.88, 0.9)]), {}, [])


def test_text_is_escaped() -> None:
    page = render(results([task(0.6, 0.9)]), {}, [])
    assert "Is &lt;it&gt; there?" in page and "<it>" not in page


def test_numbers_that_are_not_finite_become_null_in_json() -> None:
    some = results([])
    some.seconds = {"a": float("nan"), "b": float("inf"), "c": 1.5}
    assert json.loads(some.to_json())["seconds"] == {"a": None, "b": None, "c": 1.5}


def test_figures_are_well_formed_and_hold_their_values() -> None:
    one = task(0.6, 0.9)
    drawn = [
        figures.overview([one]),
        figures.roc(one),
        figures.whisker(interval(0.7), System.HEADER, 0.3, 1.0, 0.5),
        figures.scale(0.0, 1.0, (0.0, 1.0)),
        figures.curve("loss", [1, 2, 3], [3.0, 2.0, 1.0]),
        figures.curve("flat", [1, 2], [1.0, 1.0]),
    ]
    for svg in drawn:
        ElementTree.fromstring(svg)
    assert "0.700, from 0.650 to 0.750" in drawn[2]


def test_an_axis_maps_linearly_and_holds_values_within_its_ends() -> None:
    axis = figures.Axis(0.3, 1.0, 10, 80)
    assert axis.at(0.3) == 10 and axis.at(1.0) == 80
    assert axis.at(0.65) == pytest.approx(45)
    assert axis.at(0.1) == 10 and axis.at(7) == 80


def test_training_curves_are_thinned_to_their_end_and_skipped_steps_left_out(tmp_path: Path) -> None:
    rows = [{"step": s, "loss": float(s), "applied": s != 500, "note": "x"} for s in range(1, 1001)]
    export = tmp_path / "export"
    export.mkdir()
    (export / "metrics.jsonl").write_text("\n".join(json.dumps(r) for r in rows) + "\n{broken", encoding="utf-8")
    (tmp_path / "run.yaml").write_text("optim:\n  learning_rate: 0.1\n", encoding="utf-8")
    found = read_training(export)
    loss = found["curves"]["loss"]
    assert len(loss["step"]) <= 300 and loss["step"][-1] == 1000 and 500 not in loss["step"]
    assert list(found["curves"]) == ["loss"]
    assert found["summary"]["Loss at the end"] == 1000.0
    assert found["configuration"] == {"optim": {"learning_rate": 0.1}}


def test_no_metrics_beside_the_weights_is_no_error(tmp_path: Path) -> None:
    assert read_training(tmp_path) == {"curves": {}, "summary": {}, "cost": {}, "configuration": {}}


def test_the_cost_of_all_attempts_is_shown_and_what_was_not_measured(tmp_path: Path) -> None:
    (tmp_path / "cost").mkdir()
    for attempt, package_kwh in (("1", 0.25), ("2", 0.5)):
        account = AttemptCost(
            attempt=attempt,
            unit="CPU core",
            devices=2,
            wall_s=900.0,
            device_hours=0.5,
            cpu_hours=0.375,
            package_kwh=package_kwh,
            peak_host_gb=1.25,
            not_measured={"gpu_kwh": "no GPU was used", "peak_device_gb": "no GPU was used"},
        )
        (tmp_path / f"cost/attempt-{attempt}.json").write_text(json.dumps(asdict(account)))
    export = tmp_path / "export"
    export.mkdir()
    (export / COST_FILE).write_text(json.dumps(read_cost(tmp_path)))
    some = results([])
    some.training = read_training(export)
    page = render(some, {}, [])
    for words, value in (
        ("Attempts", "2"),
        ("CPU core hours held", "1"),
        ("Processor hours used", "0.75"),
        ("Energy of the processors, kWh", "0.75"),
        ("Peak memory of a rank, GiB", "1.25"),
    ):
        assert f"<dt>{words}</dt><dd>{value}</dd>" in page
    assert "Not measured: Energy of the GPUs, kWh (no GPU was used);" in page
    assert "Cost" not in render(results([]), {}, [])
