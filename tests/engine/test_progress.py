from __future__ import annotations

import io
import os
import pty
import re
import select

import pytest

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


FULL = {
    "koleo": 0.5,
    "self_distillation": 1.25,
    "gradient_norm": 3.456,
    "tokens_per_s": 12345.6,
    "tflops_per_device": 123.4,
    "mfu": 0.375,
    "data_wait_s": 0.5,
    "forward_s": 1.0,
    "peak_memory_gb": 61.5,
    "slowest_rank": 3,
    "slowest_rank_s": 1.5,
    "median_rank_s": 1.0,
}


def test_a_terminal_shows_everything_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a real pseudo-terminal: what was drawn last is what a person sees."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty()
    with open(theirs, "w") as terminal, ProgressView(100, terminal) as view:
        view.note("attempt 1: starts at step 0 of 100")
        view.update(row(1, **FULL))
        view.update({**row(2, **FULL), "applied": False, "loss": None})
        view.update(row(3, **FULL))
    drawn = b""
    while select.select([ours], [], [], 0.2)[0]:
        try:
            drawn += os.read(ours, 65536)
        except OSError:
            break
    os.close(ours)
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", drawn.decode())
    assert "attempt 1: starts at step 0 of 100" in text
    last = text[text.rindex("training") :]
    for words in (
        "3/100",
        "3:14 left",
        "2.5000 · koleo 0.5000 · self_distillation 1.2500 · image-text top-1 25%",
        "15 volumes/s · 12,346 tokens/s · 123 TFLOP/s a device · MFU 37.5%",
        "2 s · forward 50%",
        "25% of the time for data",
        "61.50 GiB at most",
        "skipped steps 1 · the last at 2 · gradient norm 3.46 · slowest rank 3, 1.50 × the median",
    ):
        assert words in last, words


def test_a_plain_line_tells_of_waiting_and_of_skipped_steps() -> None:
    view = ProgressView(10, io.StringIO())
    view.update({**row(1, data_wait_s=0.5), "applied": False})
    assert view.facts(row(1)).endswith("15 volumes/s  data wait 25%  1 skipped  0:18 left")


def test_hours_are_written_as_hours() -> None:
    assert progress._clock(2 * 3600 + 3 * 60 + 4) == "2:03:04"
