from __future__ import annotations

from typing import Any

import pytest

from fm.config.errors import ConfigError
from fm.config.trainer import TrainerConfig


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"profile_steps": [10]}, r"trainer\.profile_steps=\[10\]: give the first and the last"),
        ({"profile_steps": [20, 10]}, r"trainer\.profile_steps"),
        ({"profile_steps": [0, 10]}, r"trainer\.profile_steps"),
        ({"spike_window": 1}, r"trainer\.spike_window=1"),
        ({"spike_sigma": -1.0}, "spike_sigma"),
        ({"hang_timeout_s": -1}, "hang_timeout_s"),
        ({"keep_every_steps": -5}, "keep_every_steps"),
        ({"keep_best": -1}, "keep_best"),
        (
            {"keep_best": 1},
            r"keep_best=1 by probe_retrieval_r5 needs trainer\.probe_every_steps .*=200, not 0",
        ),
        ({"keep_best": 1, "probe_every_steps": 300}, r"checkpoint_every_steps=200, not 300"),
        ({"keep_best": 1, "best_metric": ""}, r"needs trainer\.best_metric"),
        ({"probe_every_steps": 10, "log_every_steps": 4}, r"a multiple of trainer\.log_every_steps=4"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TrainerConfig(**values)


def test_guards_may_be_turned_off_and_steps_profiled() -> None:
    config = TrainerConfig(spike_sigma=0.0, hang_timeout_s=0, profile_steps=[10, 20])
    assert config.profile_steps == [10, 20]
