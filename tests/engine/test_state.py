from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fm.engine.checkpoint import CheckpointError
from fm.engine.state import RunState, read_state

SAVED = RunState(step=7, stage=2, precision="bf16", world_size=2, dataset_id="abc", parameters=100)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parameters": 99}, "trained parameters 100, this run has 99"),
        ({"dataset_id": "abd"}, "dataset id abc, this run has abd"),
    ],
)
def test_row_46_a_checkpoint_of_another_run_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        replace(SAVED, **change).require_same(SAVED)


def test_another_layout_is_told_of_and_accepted() -> None:
    here = replace(SAVED, world_size=4, stage=1, precision="fp32")
    here.require_same(SAVED)
    assert here.changes(SAVED) == ["launch.processes 2 → 4", "trainer.stage 2 → 1", "trainer.precision bf16 → fp32"]
    assert SAVED.changes(SAVED) == []


def test_row_46_a_grown_dataset_is_accepted_by_its_id() -> None:
    grown = replace(SAVED, dataset_id="abd")
    grown.require_same(SAVED, accept="abd")
    with pytest.raises(CheckpointError, match="dataset id"):
        grown.require_same(SAVED, accept="another")


def test_an_unreadable_state_is_a_bad_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"step": 1}')
    with pytest.raises(CheckpointError, match=r"state\.json cannot be read"):
        read_state(tmp_path)
