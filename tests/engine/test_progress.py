from __future__ import annotations

import io

from fm.engine import progress
from fm.engine.progress import ProgressView


def row(step: int, **more: float) -> dict[str, float | int | str | bool | None]:
    return {"step": step, "loss": 2.5, "image_text_top1": 0.25, "step_s": 2.0, "volumes": 30.0, **more}


def test_lines_say_step_loss_accuracy_speed_and_time_left(monkeypatch: object) -> None:
    stream = io.StringIO()
    with ProgressView(100, stream) as view:
        view.update(row(1))
        view.update(row(2))
        view.note("resumes at step 50")
        view.update(row(100))
    first, note, last = stream.getvalue().splitlines()
    assert first == "step 1/100  loss 2.500  image-text top-1 25%  15 volumes/s  3:18 left"
    assert note == "resumes at step 50"
    assert last.startswith("step 100/100") and last.endswith("0:00 left")


def test_a_skipped_step_has_no_loss_to_show() -> None:
    view = ProgressView(10, io.StringIO())
    assert view.facts({"step": 1, "loss": None}) == ""


def test_hours_are_written_as_hours() -> None:
    assert progress._clock(2 * 3600 + 3 * 60 + 4) == "2:03:04"
