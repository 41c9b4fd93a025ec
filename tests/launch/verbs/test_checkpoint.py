from __future__ import annotations

from pathlib import Path

import pytest

from fm.engine.checkpoint import CheckpointStore
from launch.verbs.main import main


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    store = CheckpointStore(tmp_path / "run" / "checkpoints", keep_last=3)
    for step in (10, 20):
        partial = store.begin(step)
        (partial / "state.json").write_text('{"world_size": 2, "stage": 1, "precision": "bf16", "dataset_id": "ab12"}')
        (partial / "teacher.safetensors").write_bytes(bytes(1_500_000))
        store.commit(step, partial)
    return tmp_path / "run"


def test_list(run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    (run_dir / "checkpoints" / "step-00000030").mkdir()  # cut short before its commit
    assert main(["checkpoint", "list", f"from_run={run_dir}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if "ab12" in line]
    assert len(rows) == 2 and all(word in rows[1] for word in (" 20 ", " 1.5 ", " 2 ", " 1 ", "bf16"))


def test_verify_names_what_is_damaged(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "verify", f"from_run={run_dir}"]) == 0
    assert capsys.readouterr().out.count("every file has the SHA-256") == 2
    path = run_dir / "checkpoints" / "step-00000020" / "teacher.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert main(["checkpoint", "verify", f"from_run={run_dir}"]) == 1
    out = capsys.readouterr().out
    assert "step 10: every file" in out and "step 20: damaged" in out and "teacher.safetensors" in out
    assert main(["checkpoint", "verify", f"from_run={run_dir}", "step=10"]) == 0


@pytest.mark.parametrize("subverb", ["list", "verify"])
def test_a_folder_without_checkpoints_is_one_line(
    subverb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["checkpoint", subverb, f"from_run={tmp_path}"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
