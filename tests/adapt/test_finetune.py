"""Real fine-tuning runs in worker processes, and what comes out of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fm.data.index import Manifest
from fm.models.encoder import load_encoder
from launch.verbs.main import main
from tests.adapt.conftest import CLASSES, NUMBER
from tests.pretrain.conftest import Nursery, rows_of


@pytest.fixture(scope="session")
def classified(tmp_path_factory: pytest.TempPathFactory, new_run: Callable[..., Path], nursery: Nursery) -> Path:
    """An undisturbed run of one process."""
    folder = new_run(tmp_path_factory.mktemp("runs") / "classified", *CLASSES)
    assert nursery.train(folder, ranks=1) == [0]
    return folder


@pytest.fixture(scope="session")
def frozen(tmp_path_factory: pytest.TempPathFactory, new_run: Callable[..., Path], nursery: Nursery) -> Path:
    """A regression by the head alone, in two micro-batches a step, probed on held-out patients of its own split."""
    words = (*NUMBER, "task.mode=frozen", "data.micro_batch_size=4", "task.validation_share=0.3")
    folder = new_run(tmp_path_factory.mktemp("runs") / "frozen", *words, "optim.learning_rate=2e-2")
    assert nursery.train(folder, ranks=1) == [0]
    return folder


def weights(run: Path, step: int, name: str = "teacher") -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")


def test_training_tells_the_classes(classified: Path, labelled: str, tmp_path: Path) -> None:
    """Better than chance, which is where it begins, on patients that it never saw; the predictions say the same."""
    rows = rows_of(classified)
    probed = [row for row in rows if "probe_auroc" in row]
    assert rows[0]["loss"] == pytest.approx(np.log(2), abs=1e-3), "the head starts by answering nothing"
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"], [row["loss"] for row in rows]
    assert probed[-1]["probe_auroc"] > 0.9 and probed[-1]["probe_balanced_accuracy"] > 0.8, probed
    out = tmp_path / "out.csv"
    assert main(["predict", f"model={classified / 'export'}", f"input={labelled}", f"out={out}"]) == 0
    with out.open() as file:
        said = {row["key"]: row for row in csv.DictReader(file)}
    samples = list(Manifest.open(labelled).samples)
    assert set(said) == {sample.key for sample in samples}, "a row for every study, with or without label"
    held = [sample for sample in samples if sample.split == "val" and sample.labels]
    right = [said[sample.key]["prediction"] == sample.labels["side"] for sample in held]
    assert np.mean(right) > 0.8
    one = said[samples[0].key]
    assert float(one["p_left"]) + float(one["p_right"]) == pytest.approx(1)


def test_the_export_is_an_encoder_too_and_holds_no_pickle(classified: Path) -> None:
    export = classified / "export"
    load_encoder(export)
    names = {path.name for path in export.iterdir()}
    assert {"model.safetensors", "head.safetensors", "task.json", "config.json", "README.md"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    assert json.loads((export / "task.json").read_text())["classes"] == ["left", "right"]


def test_a_frozen_encoder_stays_bit_equal_while_its_head_learns_a_number(
    frozen: Path, encoder: Path, labelled: str, tmp_path: Path
) -> None:
    probed = {row["step"]: row["probe_mae"] for row in rows_of(frozen) if "probe_mae" in row}
    best = min(probed, key=lambda step: probed[step])
    assert probed[best] < 5 and probed[30] < 8, f"years off, of 10 without any training: {probed}"
    assert json.loads((frozen / "export" / "task.json").read_text())["step"] == best
    before, after = load_file(encoder / "model.safetensors"), load_file(frozen / "export" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    out = tmp_path / "out.parquet"
    assert main(["predict", f"model={frozen / 'export'}", f"input={labelled}", f"out={out}"]) == 0
    values = pq.read_table(out)["prediction"].to_numpy()
    assert 35 < values.mean() < 65, "in the label's unit"


def test_a_stopped_run_ends_as_the_undisturbed_one(
    tmp_path: Path, classified: Path, new_run: Callable[..., Path], nursery: Nursery
) -> None:
    run = new_run(tmp_path / "run", *CLASSES)
    stop = {"rank": "all", "phase": "forward", "turn": 12, "deed": "SIGTERM"}
    assert nursery.train(run, stop, ranks=1) == [75]
    assert rows_of(run)[-1]["step"] == 12
    assert nursery.train(run, ranks=1) == [0]
    for name in ("teacher", "student"):
        expected, found = weights(classified, 30, name), weights(run, 30, name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_two_processes_equal_one(
    tmp_path: Path, classified: Path, new_run: Callable[..., Path], nursery: Nursery
) -> None:
    run = new_run(tmp_path / "run", *CLASSES, "data.micro_batch_size=4")
    assert nursery.train(run, ranks=2) == [0, 0]
    one, two = ([row["loss"] for row in rows_of(folder)[:5]] for folder in (classified, run))
    assert two == pytest.approx(one, rel=1e-3)
    expected, found = weights(classified, 5), weights(run, 5)
    assert all(torch.allclose(expected[name], found[name], atol=2e-3) for name in expected)
