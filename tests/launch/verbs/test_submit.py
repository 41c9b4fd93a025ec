"""``fm submit`` without any cluster: what it composes, what it would send, what it refuses."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from launch.cluster.code import COMMIT, PATCH, pack
from launch.runs import attempts, begin_attempt
from launch.verbs.main import main

SLURM = ["verb=pretrain", "launch=slurm", "dry_run=true"]


def test_a_dry_run_prints_the_script_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = [*SLURM, "launch.nodes=2", "data.url=/data/shards", f"run={run}", "trainer.signal_lead_s=45"]
    assert main(["submit", *words]) == 0
    said = capsys.readouterr().out
    assert "#SBATCH --nodes=2" in said and "#SBATCH --signal=USR1@60" in said and f"launch.node {run}" in said
    assert list(tmp_path.iterdir()) == []


def test_any_verb_is_sent_with_its_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["verb=prepare", "launch=slurm", "dry_run=true", "input=/a b/dicom", "out=s3://bucket/x=1"]
    assert main(["submit", *words]) == 0
    assert "launch.verbs.main prepare 'input=/a b/dicom' out=s3://bucket/x=1" in capsys.readouterr().out


def test_a_sweep_is_one_array(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SLURM, "data.url=/d", f"run={tmp_path / 'sweep'}", "seed=0,1,2", "launch.parallel=2"]
    assert main(["submit", "-m", *words, "max_steps=1,2"]) == 0
    said = capsys.readouterr().out
    assert "#SBATCH --array=0-5%2" in said and "launch.task" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["launch=slurm"], "give verb="),
        (["verb=pretrian", "launch=slurm"], "did you mean pretrain"),
        (["verb=pretrain"], "fm submit sends to a cluster"),
        ([*SLURM, "data.ulr=x"], "did you mean data.url"),
        ([*SLURM, "data.url=x", "seed=0,1"], "add -m"),
        (["verb=prepare", "launch=slurm", "dry_run=true", "input=x"], "give out=TEXT"),
        (["verb=prepare", "launch=slurm", "launch.nodes=2", "dry_run=true", "input=x", "out=y"], "runs on one node"),
        (
            ["verb=pretrain", "launch=kubernetes", "launch.image=x", "dry_run=true", "data.url=x", "run=r"],
            "lies on none of launch.volumes",
        ),
    ],
)
def test_what_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", *words]) == 1
    assert said in capsys.readouterr().err


def test_training_here_with_a_cluster_says_what_to_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["jobs", "logs", f"folder={tmp_path}"]) == 1
    assert "no job was submitted" in capsys.readouterr().err


def test_the_copy_of_the_code_holds_what_differs_from_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "clone"
    (clone / "configs").mkdir(parents=True)
    (clone / "configs" / "a.yaml").write_text("a: 1\n")
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", "-C", str(clone), *words], check=True)
    (clone / "configs" / "a.yaml").write_text("a: 2\n")
    (clone / "secret.txt").write_text("untracked")
    monkeypatch.setattr("fm.config.registry.CONFIGS", clone / "configs")
    copy = pack(tmp_path / "job", "abc+changes")
    assert (copy / "configs" / "a.yaml").read_text() == "a: 2\n" and not (copy / "secret.txt").exists()
    assert (copy / COMMIT).read_text() == "abc+changes"
    assert "+a: 2" in (tmp_path / "job" / PATCH).read_text()
    (clone / "configs" / "a.yaml").write_text("a: 3\n")
    assert (pack(tmp_path / "job", "def") / "configs" / "a.yaml").read_text() == "a: 2\n"


def test_every_start_by_an_engine_is_an_attempt_of_its_own(tmp_path: Path) -> None:
    first = {"attempt": 1, "overrides": [], "changes": {"max_steps": 9}}
    (tmp_path / "attempts.jsonl").write_text(json.dumps(first) + "\n")
    assert [begin_attempt(tmp_path), begin_attempt(tmp_path), begin_attempt(tmp_path)] == ["1", "2", "3"]
    assert [entry["changes"] for entry in attempts(tmp_path)] == [{"max_steps": 9}] * 3
