from __future__ import annotations

from pathlib import Path

import pytest

from fm.config.compose import compose
from fm.config.load import save
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
    assert " 7 " in old and "1.2500" in old
    (torn,) = [line for line in page.splitlines() if "runs/torn" in line]
    assert "unreadable" in torn
    assert "next: fm pretrain run=runs/sub/new" in page


def test_a_missing_folder_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "list", "folder=/no/such/folder"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
