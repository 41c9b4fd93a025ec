from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data_prep.phantom import simulate
from data_prep.phantom.study import Atlases, build_atlases
from fm.config.phantom import PhantomConfig, Resolution

CONFIG = PhantomConfig(head_share=0.8, lesion_prevalence=0.8, missing_slice_share=0.3, repeat_share=0.4)


@dataclass(slots=True)
class Phantom:
    """A phantom on disk and its truth."""

    out: Path
    truths: list[dict[str, Any]]
    config: PhantomConfig


@pytest.fixture(scope="session")
def atlases() -> Atlases:
    return build_atlases(Resolution.demo, head=True, abdomen=True)


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Phantom:
    """Seven studies, simulated by two processes."""
    out = tmp_path_factory.mktemp("phantom") / "one"
    simulate(out, 7, 7, CONFIG, workers=2)
    truths = [json.loads(line) for line in (out / "truth.jsonl").read_text("utf-8").splitlines()]
    return Phantom(out, truths, CONFIG)
