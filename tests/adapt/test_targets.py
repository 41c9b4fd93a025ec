"""What labels allow, in one line where they do not; the loss over ranks; the layers' learning rates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fm.adapt.network import AdaptedNetwork
from fm.adapt.targets import TaskError, make_scheme, prepare, targets_of
from fm.config.compose import compose
from fm.config.errors import ConfigError
from fm.config.task import ClassificationTask, Mode, RegressionTask
from fm.data.sample import LabelValue
from fm.engine.groups import RATE, build_optimizer
from fm.models.encoder import load_encoder
from launch.verbs.main import main
from tests.adapt.conftest import CLASSES, SHORT


def test_classes_are_words_and_rare_ones_weigh_more() -> None:
    labels: dict[str, LabelValue] = {"a": 1, "b": 1.0, "c": "1", "d": 0}
    scheme = make_scheme(ClassificationTask(label="x"), labels, "here")
    assert scheme.classes == ["0", "1"] and scheme.weights == [2.0, 4 / 6]
    assert targets_of(scheme, labels) == {"a": 1.0, "b": 1.0, "c": 1.0, "d": 0.0}


def test_named_classes_leave_other_values_out_and_keep_their_order() -> None:
    labels = {"a": "high", "b": "low", "c": "unknown"}
    scheme = make_scheme(ClassificationTask(label="x", classes=["low", "high"]), labels, "here")
    assert targets_of(scheme, labels) == {"a": 1.0, "b": 0.0}


def test_numbers_are_standardised() -> None:
    scheme = make_scheme(RegressionTask(label="x"), {"a": 40, "b": "60"}, "here")
    assert (scheme.mean, scheme.scale) == (50, 10) and scheme.target(40) == -1


@pytest.mark.parametrize(
    ("task", "labels", "says"),
    [
        (ClassificationTask(label="x"), {"a": "one"}, "only one class"),
        (ClassificationTask(label="x", classes=["one", "two"]), {"a": "one"}, r"lacks \['two'\]"),
        (RegressionTask(label="x"), {"a": 3, "b": 3.0}, "only the value 3"),
        (RegressionTask(label="x"), {"a": "left", "b": 2}, "'left' is no number"),
    ],
)
def test_labels_that_teach_nothing_are_refused(task: ClassificationTask, labels: dict[str, str], says: str) -> None:
    with pytest.raises(TaskError, match=says):
        make_scheme(task, labels, "here")


@pytest.mark.parametrize(("label", "says"), [("grade", "no study of split train"), ("one", "has only one class")])
def test_the_command_refuses_in_one_line(
    label: str, says: str, labelled: str, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        f"data.url={labelled}",
        f"encoder={encoder}",
        f"run={tmp_path / 'run'}",
        *SHORT,
        *CLASSES,
        "launch.processes=1",
    ]
    assert main(["finetune", *words, f"task.label={label}"]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and says in lines[0]


def test_held_out_patients_are_not_trained_on(labelled: str) -> None:
    job = compose("finetune", [f"data.url={labelled}", *SHORT, *CLASSES, "task.validation_share=0.3"])
    _, train, probed = prepare(job)
    assert probed and not set(train) & set(probed)
    assert len(train) + len(probed) == sum(row % 5 != 4 for row in range(24)), "studies without the label take no part"


def test_a_best_checkpoint_needs_a_gauge_of_the_task() -> None:
    with pytest.raises(ConfigError, match="probe_auroc"):
        compose("finetune", ["data.url=x", *SHORT, "task.label=side"])


def test_lower_layers_learn_more_slowly(encoder: Path, new_run: Callable[..., Path]) -> None:
    network = AdaptedNetwork(load_encoder(encoder).model, 2, Mode.full)
    rates = network.rates(0.5)
    assert rates["head.linear.weight"] == 1 and rates["fm.image.norm.weight"] == 1
    assert rates["fm.image.blocks.0.mlp.up.weight"] == 0.5 and rates["fm.image.prefix.tokens"] == 0.25
    groups = build_optimizer(network, compose("pretrain", ["data.url=x"]).optim, rates).param_groups
    assert sorted({group[RATE] for group in groups}) == [0.25, 0.5, 1.0]
    text = {id(p) for p in network.fm.text.parameters()}
    assert not any(id(p) in text for group in groups for p in group["params"]), "nobody reads reports here"


def test_a_model_to_predict_with_is_no_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compose("predict", ["model=tiny", "input=i", "out=o.csv"]).model == "tiny"
    assert main(["predict", f"model={tmp_path}", "input=i", f"out={tmp_path / 'o.csv'}"]) == 1
    assert "no fine-tuned model there" in capsys.readouterr().err
    assert main(["predict", "input=i", "out=o.csv"]) == 1
    assert "model=" in capsys.readouterr().err
