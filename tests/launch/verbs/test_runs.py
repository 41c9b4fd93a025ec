from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from fm.config.compose import compose
from fm.config.load import save
from fm.engine.account import AttemptCost
from fm.engine.verdict import Outcome, Verdict, write_verdict
from launch.story import read_story
from launch.verbs.main import main


def test_runs_are_listed_newest_first_with_their_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    for name, time in (("old", "2026-01-01T00:00:00+00:00"), ("sub/new", "2026-02-01T00:00:00+00:00")):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        save(compose("pretrain", ["data.url=x"]), folder / "run.yaml", verb="pretrain", time=time)
    (tmp_path / "runs/old/metrics.jsonl").write_text('{"step": 7, "loss": 1.25}\n{"step": 8, "lo')
    (tmp_path / "runs" / "torn").mkdir()
    (tmp_path / "runs" / "torn" / "run.yaml").write_text("about: [")
    assert main(["runs", "list"]) == 0
    page = capsys.readouterr().out
    assert page.index("runs/sub/new") < page.index("runs/old") < page.index("runs/torn")
    (old,) = [line for line in page.splitlines() if "runs/old" in line]
    assert " 7 " in old and "1.2500" in old and "not started" in old
    (torn,) = [line for line in page.splitlines() if "runs/torn" in line]
    assert "unreadable" in torn
    assert "next: fm runs show from_run=runs/sub/new" in page


def test_prices_turn_measured_hours_and_energy_into_money(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    run = tmp_path / "run"
    write_attempts(run)
    show = ["runs", "show", f"from_run={run}"]
    assert main([*show, "price.gpu_hour=3", "price.spot_gpu_hour=1.25", "price.kwh=0.5"]) == 0
    page = capsys.readouterr().out
    assert "12.00 on demand at 3 a GPU hour; 5.00 spot at 1.25 a GPU hour; 1.50 for the measured electricity" in page
    assert main(show) == 0
    assert "price " not in capsys.readouterr().out
    assert main([*show, "price.kwh=-1"]) == 1
    assert "price.kwh=-1" in capsys.readouterr().err


def write_attempts(run: Path) -> None:
    """A run that was killed, failed, was stopped, and got to its end."""
    run.mkdir()
    save(compose("pretrain", ["data.url=x", "max_steps=9"]), run / "run.yaml", verb="pretrain", commit="c0de1")
    with open(run / "attempts.jsonl", "w") as stream:
        for attempt in range(1, 5):
            changes = {"trainer.stage": 1} if attempt == 3 else {"max_steps": 12} if attempt == 4 else {}
            began = {"attempt": attempt, "time": f"2026-01-0{attempt}T00:00:00+00:00", "commit": f"c0de{attempt % 3}"}
            stream.write(json.dumps({**began, "changes": changes}) + "\n")
    (run / "errors").mkdir()
    (run / "errors" / "attempt-2-rank-1.json").write_text("{}")
    write_verdict(run, Verdict(attempt="3", outcome=Outcome.REQUEUE, step=8))
    write_verdict(run, Verdict(attempt="4", outcome=Outcome.DONE, step=12))
    (run / "cost").mkdir()
    for attempt, steps in (("1", (1, 5)), ("3", (4, 8))):
        account = AttemptCost(
            attempt=attempt,
            unit="GPU",
            devices=8,
            wall_s=900.0,
            device_hours=2.0,
            first_step=steps[0],
            step=steps[1],
            gpu_kwh=1.5,
        )
        (run / "cost" / f"attempt-{attempt}.json").write_text(json.dumps(asdict(account)))
    (run / "environment").mkdir()
    (run / "environment" / "attempt-3.json").write_text(json.dumps({"ranks": [{"gpu": "NVIDIA H100"}] * 8}))
    (run / "metrics.jsonl").write_text('{"step": 12, "loss": 1.5}\n')
    (run / "events.log").write_text(
        "2026-01-03 00:01:02,345 INFO rank 0 fm.pretrain.run: attempt 3: resumes at step 3 of 9\n"
        "2026-01-03 00:01:03,345 INFO rank 1 fm.pretrain.run: of another rank\nTraceback\n"
    )


def test_a_run_tells_what_became_of_each_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    run = tmp_path / "run"
    write_attempts(run)
    assert main(["runs", "show", f"from_run={run}"]) == 0
    page = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in page.splitlines() if "│ 01-0" in line]
    assert [row[4] for row in rows] == ["killed", "failed", "stopped and saved", "done"]
    assert rows[0][2] == "1–5" and rows[1][2] == ""
    assert rows[2][2:4] == ["4–8", "0.25"] and rows[2][5:7] == ["8 × NVIDIA H100", "trainer.stage=1 code=c0de0"]
    assert rows[0][6] == "" and rows[3][6] == "max_steps=12"
    assert "state    done, step 12 of 12" in page
    assert "4 GPU hours, 3 kWh of GPUs" in page and "not measured: cpu_hours" in page
    assert "00:01:02  attempt 3: resumes at step 3 of 9" in page and "of another rank" not in page
    assert "cost            hours, energy" in page and "wandb" not in page
    assert f"next: fm evaluate encoder={run}/export" in page


def test_an_attempt_that_gave_a_sign_of_life_is_running(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_attempts(run)
    with open(run / "attempts.jsonl", "a") as stream:
        stream.write('{"attempt": 5, "time": "2026-01-05T00:00:00+00:00", "changes": {}}\n')
    assert read_story(run).state == "killed"
    (run / "cost" / "attempt-5.json").write_text("{}")
    assert read_story(run).state == "running"
    os.utime(run / "cost" / "attempt-5.json", (0, 0))
    assert read_story(run).state == "killed"


def test_show_of_a_folder_without_a_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "show", f"from_run={tmp_path}"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_missing_folder_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "list", "folder=/no/such/folder"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
