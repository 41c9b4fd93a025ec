from __future__ import annotations

import errno
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fm.config.errors import UserError
from launch.verbs import main as command


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[Any], int]], None]:
    """Put a function in the place of a verb's ``run``."""

    def put(name: str, run: Callable[[Any], int]) -> None:
        module = types.ModuleType(f"launch.verbs.{name}")
        module.__dict__["run"] = run
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(command, "verbs", lambda: ["phantom", "prepare", "demo", "doctor", "runs list"])

    return put


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit code and standard error of a command line; the latter is one line or nothing."""
    code = command.main(words)
    text = capsys.readouterr().err
    assert text.count("\n") <= 1
    return code, text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["phantm", "out=x"], "did you mean phantom?"),
        (["runs"], "fm runs list"),
        (["runs", "lst"], "fm runs list"),
        (["phantom", "out=x", "studdies=3"], "did you mean studies?"),
        (["phantom", "--out", "x"], "unknown flag --out"),
        (["phantom", "out=x", "--hlep"], "did you mean --help?"),
        (["phantom", "out=x", "seed=1,2"], "add -m"),
        (["phantom", "-m", "out=x", "seed=1,2"], "no run folder"),
        (["phantom", "--cfg", "hydra"], "--cfg takes job"),
        (["phantom"], "out="),
        (["completion", "fish"], "bash"),
    ],
)
def test_a_slip_is_one_line_and_exit_1(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(capsys, *words)
    assert code == 1
    assert text.startswith("fm: ") and says in text
    assert not list(Path().iterdir())


def test_the_verb_gets_the_typed_job_and_its_code_is_returned(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = []
    verb("phantom", lambda job: jobs.append(job) or 75)
    assert said(capsys, "phantom", "out=a=b", "studies=3") == (75, "")
    assert (jobs[0].out, jobs[0].studies) == ("a=b", 3)


def test_a_user_error_is_one_line_with_the_traceback_beside_the_output(
    verb: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(job: Any) -> int:
        raise UserError("input=x holds no DICOM:\n give a folder that does")

    verb("prepare", run)
    assert said(capsys, "prepare", "input=x", "out=o") == (1, "fm: input=x holds no DICOM: give a folder that does\n")
    assert "Traceback" in Path("o.events.log").read_text()


def test_an_unexpected_error_names_its_log(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def run(job: Any) -> int:
        raise KeyError("lost")

    verb("demo", run)
    code, text = said(capsys, "demo", "run=r")
    assert code == 1
    assert text == "fm demo failed: KeyError: 'lost' (traceback in r/events.log)\n"
    assert "raise KeyError" in Path("r/events.log").read_text()


def test_a_full_disk_says_so_and_that_the_command_goes_on(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def run(job: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "o/shard.tar")

    verb("prepare", run)
    code, text = said(capsys, "prepare", "input=x", "out=o")
    assert code == 1
    assert "disk is full while writing o/shard.tar" in text and "run the same command again" in text


def test_an_interrupt_is_130(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def run(job: Any) -> int:
        raise KeyboardInterrupt

    verb("phantom", run)
    assert said(capsys, "phantom", "out=o") == (130, "fm: interrupted\n")


def test_log_records_of_our_rooms_reach_the_run_folder(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    import logging

    verb("demo", lambda job: logging.getLogger("data_prep.x").info("seven series quarantined") or 0)
    assert said(capsys, "demo", "run=r") == (0, "seven series quarantined\n")
    assert "data_prep.x: seven series quarantined" in Path("r/events.log").read_text()
    assert not logging.getLogger("data_prep").handlers


def test_a_sweep_runs_each_job_in_its_child_and_returns_the_worst_code(
    verb: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = []
    verb("demo", lambda job: jobs.append(job) or job.seed)
    assert command.main(["demo", "-m", "run=parent", "seed=0,2,1"]) == 2
    assert [(job.run, job.seed) for job in jobs] == [
        ("parent/000,seed=0", 0),
        ("parent/001,seed=2", 2),
        ("parent/002,seed=1", 1),
    ]


def test_demo_on_own_dicom_starts_from_its_own_root(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = []
    verb("demo", lambda job: jobs.append(job) or 0)
    assert command.main(["demo", "run=a"]) == command.main(["demo", "run=b", "input=dicom"]) == 0
    assert jobs[1].max_steps < jobs[0].max_steps
    assert command.main(["demo", "run=c", "reports=r.csv"]) == 1


def test_help_names_every_verb_and_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    page = capsys.readouterr().out
    assert all(f"  {name}" in page for name in command.verbs())
    assert command.main(["prepare", "--help"]) == 0
    page = capsys.readouterr().out
    assert "fm prepare input=DIR reports=FILE out=URL" in page
    assert "input=REQUIRED" in page and "workers=0" in page and "prepare.test_fraction=" in page


def test_cfg_job_prints_the_configuration_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["phantom", "out=o", "--cfg", "job"]) == 0
    assert "studies: 400" in capsys.readouterr().out
    assert not Path("o").exists()


def test_completion_and_help_load_neither_hydra_nor_torch() -> None:
    code = """
import sys
from launch.verbs.main import main
main(["_complete", "fm pretrain mo"]); main(["completion", "bash"]); main(["pretrain", "--help"])
sys.exit(bool({"hydra", "omegaconf", "torch", "numpy"} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """``fm doctor | head -1``: nothing on standard error."""
    fm = Path(sys.executable).with_name("fm")
    done = subprocess.run(
        ["bash", "-c", f"'{fm}' doctor | head -n 1"], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip()
    assert "fm:" not in done.stderr and "Traceback" not in done.stderr
