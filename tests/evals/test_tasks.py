from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evals.cohort import Cohort, CohortError, word
from evals.results import Skipped
from evals.tasks import Task, build_task
from fm.config.errors import ConfigError
from fm.config.suite import SuiteConfig, TaskConfig, TaskLevel
from fm.data.sample import StudyMeta

SUITE = SuiteConfig(min_patients_per_class=2)


def cohort(rows: list[tuple[str, str, bool, dict[str, Any]]]) -> Cohort:
    """(patient, region, test, labels) of each study."""
    studies = [
        StudyMeta(key=f"s{i}", patient=patient, region=region, series=[], labels=labels)
        for i, (patient, region, _, labels) in enumerate(rows)
    ]
    return Cohort(studies=studies, test_N=np.array([test for _, _, test, _ in rows]))


def graded() -> Cohort:
    grades = ["none", "easy", "medium", "easy", "none", "easy", "none", "easy", "none", "medium", "none"]
    test = [False] * 5 + [True] * 6
    return cohort([(f"p{i}", "head", t, {"grade": g}) for i, (g, t) in enumerate(zip(grades, test, strict=True))])


def test_a_graded_task_fits_on_every_grade_and_scores_on_one() -> None:
    config = TaskConfig(label="grade", positive=["easy"], negative=["none"], fit_positive=["easy", "medium"])
    task = build_task("t", config, graded(), SUITE)
    assert isinstance(task, Task)
    assert task.fit_rows.tolist() == [0, 1, 2, 3, 4] and task.fit_labels.tolist() == [0, 1, 1, 1, 0]
    assert task.test_rows.tolist() == [5, 6, 7, 8, 10] and task.test_labels.tolist() == [1, 0, 1, 0, 0]


def test_numbers_and_words_are_the_same_label() -> None:
    assert [word(v) for v in (1, 1.0, "1", True, 2.5, None, "left")] == ["1", "1", "1", "1", "2.5", None, "left"]


def test_a_task_stays_within_its_region_and_leaves_missing_labels_out() -> None:
    rows = [(f"p{i}", "head" if i % 3 else "abdomen", i > 9, {"lesion": i % 2} if i != 4 else {}) for i in range(20)]
    task = build_task(
        "t", TaskConfig(label="lesion", region="head", positive=["1"], negative=["0"]), cohort(rows), SUITE
    )
    assert isinstance(task, Task)
    assert task.fit_rows.tolist() == [1, 2, 5, 7, 8]
    assert task.test_rows.tolist() == [10, 11, 13, 14, 16, 17, 19]


def test_too_few_patients_of_a_class_are_said_with_their_numbers() -> None:
    # Three positives of one patient are one patient.
    rows = [("a", "head", False, {"x": 1})] * 3 + [(f"b{i}", "head", False, {"x": 0}) for i in range(5)]
    rows += [(f"c{i}", "head", True, {"x": i % 2}) for i in range(8)]
    found = build_task("t", TaskConfig(label="x", positive=["1"], negative=["0"]), cohort(rows), SUITE)
    assert isinstance(found, Skipped)
    assert found.reason == "fewer than 2 patients (positive: 1 in train, 4 in test)"


def test_an_absent_label_is_said() -> None:
    found = build_task("t", TaskConfig(label="sinus", region="head"), graded(), SUITE)
    assert isinstance(found, Skipped) and found.reason == "no study in region head has the label sinus"


def test_rare_classes_of_many_are_left_out_and_named() -> None:
    values = ["a", "b", "c", "a", "b", "a", "b", "c", "a", "b", "a", "b", "a", "b", "a", "b"]
    rows = [(f"p{i}", "head", i > 7, {"kind": v}) for i, v in enumerate(values)]
    task = build_task("t", TaskConfig(label="kind"), cohort(rows), SUITE)
    assert isinstance(task, Task)
    assert task.classes == ["a", "b"] and "c" in task.note
    assert task.fit_rows.tolist() == [0, 1, 3, 4, 5, 6]


def test_a_patient_in_train_and_test_is_refused_by_pseudonym() -> None:
    with pytest.raises(CohortError, match=r"1 patient.*p7"):
        cohort([("p7", "head", False, {}), ("p8", "head", True, {}), ("p7", "head", True, {})])
    with pytest.raises(CohortError, match="no study"):
        cohort([])


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"label": "x", "positive": ["1"]},
        {"label": "x", "positive": ["1"], "negative": ["1"]},
        {"label": "x", "level": TaskLevel.series},
    ],
)
def test_tasks_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TaskConfig(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"bootstrap_draws": 3},
        {"confidence": 1.2},
        {"folds": 1},
        {"linear_c": []},
        {"neighbours": [0]},
        {"batch_studies": 0},
    ],
)
def test_suites_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SuiteConfig(**values)


def test_a_series_task_takes_one_series_of_each_study_whatever_the_others_are() -> None:
    from fm.data.sample import Contrast, Plane, Role, SeriesMeta

    def series(name: str, contrast: Contrast) -> SeriesMeta:
        return SeriesMeta(
            name=name,
            contrast=contrast,
            role=Role.ORIGINAL,
            plane=Plane.AXIAL,
            shape=(1, 1, 1),
            spacing_mm=(1.0, 1.0, 1.0),
            affine=[[1.0, 0.0, 0.0, 0.0]] * 4,
            slice_position_mm=[0.0],
            slice_valid=[True],
            frame_of_reference=0,
            foreground=((0, 0, 0), (1, 1, 1)),
            intensity_scale=1.0,
            intensity_offset=0.0,
            intensity_low=0.0,
            intensity_high=1.0,
        )

    some = cohort([(f"p{i}", "head", i > 19, {}) for i in range(40)])
    for i, study in enumerate(some.studies):
        both = [series("t1w", Contrast.T1W), series("t2w", Contrast.T2W)]
        study.series = both[: i % 3]
    probed = some.probed
    assert [row for row, _ in probed] == [i for i in range(40) if i % 3]
    assert {s.contrast for _, s in probed} == {Contrast.T1W, Contrast.T2W}
    assert some.without(["s1"]).probed[0][1] == probed[1][1]
    task = build_task("t", TaskConfig(label="contrast", level=TaskLevel.series), some, SUITE)
    assert isinstance(task, Task)
    assert len(task.fit_rows) + len(task.test_rows) == len(probed)
    words = [task.classes[k] for k in task.test_labels]
    assert words == [str(probed[i][1].contrast) for i in task.test_rows]
