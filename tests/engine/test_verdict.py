from __future__ import annotations

from pathlib import Path

from fm.engine.verdict import VERDICTS, Outcome, Verdict, read_verdict, read_verdicts, write_verdict


def test_a_verdict_counts_for_its_own_attempt_only(tmp_path: Path) -> None:
    assert read_verdict(tmp_path, "1") is None
    verdict = Verdict(attempt="1", outcome=Outcome.REQUEUE, step=7)
    write_verdict(tmp_path, verdict)
    assert read_verdict(tmp_path, "1") == verdict
    assert read_verdict(tmp_path, "2") is None, "an earlier attempt says nothing about this one"


def test_a_torn_or_foreign_file_is_no_verdict(tmp_path: Path) -> None:
    for text in ("", '{"attempt": "1"', '{"attempt": "1", "outcome": "great", "step": 1}', "[]"):
        (tmp_path / "verdict.json").write_text(text)
        assert read_verdict(tmp_path, "1") is None


def test_the_verdicts_of_all_attempts_are_kept_but_for_a_torn_line(tmp_path: Path) -> None:
    first = Verdict(attempt="1", outcome=Outcome.REQUEUE, step=7)
    third = Verdict(attempt="3", outcome=Outcome.DONE, step=9)
    write_verdict(tmp_path, first)
    with open(tmp_path / VERDICTS, "a") as stream:
        stream.write('{"attempt": "2", "outc\n')
    write_verdict(tmp_path, third)
    assert read_verdicts(tmp_path) == {"1": first, "3": third}
    assert read_verdict(tmp_path, "3") == third
    (tmp_path / VERDICTS).unlink()
    assert read_verdicts(tmp_path) == {"3": third}, "a run of before the list was kept"
