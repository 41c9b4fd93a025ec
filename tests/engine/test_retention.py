from __future__ import annotations

import math

import pytest

from fm.engine.retention import Best, superfluous

SCORES = {1: 0.5, 2: 0.9, 3: 0.1, 4: None, 5: 0.9, 6: math.nan, 7: 0.2}


@pytest.mark.parametrize(
    ("last", "every", "best", "kept"),
    [
        (1, 0, None, {7}),
        (2, 3, None, {3, 6, 7}),
        (1, 0, Best(count=1, metric="m"), {5, 7}),
        (1, 0, Best(count=2, metric="m"), {2, 5, 7}),
        (1, 0, Best(count=1, metric="m", lower=True), {3, 7}),
        (1, 0, Best(count=9, metric="m"), {1, 2, 3, 5, 7}),
    ],
)
def test_what_stays(last: int, every: int, best: Best | None, kept: set[int]) -> None:
    """Of equal values the newer one is the better; a step without a number, or with NaN, is never the best."""
    steps = sorted(SCORES)
    assert set(steps) - set(superfluous(steps, last, every, best, lambda step: SCORES[step])) == kept
