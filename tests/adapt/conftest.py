"""Drawn studies with labels to tell, an encoder to start from, and run folders of fm finetune."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fm.config import compose
from fm.data.index import Manifest, write_index
from fm.data.tokenizer import train_tokenizer
from fm.models.build import build_model
from fm.models.encoder import Encoder
from launch import runs
from tests.pretrain.conftest import SMALL, Nursery, write_dataset

WORDS = [word for word in SMALL if not word.startswith("objective")]
SHORT = (
    *WORDS,
    "optim=finetune",
    "optim.learning_rate=1e-3",
    "optim.teacher_momentum=0.5",
    "optim.final_teacher_momentum=0.8",
    "max_steps=30",
    "data.global_keep=1",
    "data.micro_batch_size=8",
    "trainer.precision=fp32",
    "trainer.deterministic=true",
    "trainer.checkpoint_every_steps=5",
    "trainer.probe_every_steps=5",
    "trainer.keep_every_steps=5",
    "trainer.keep_best=1",
)
CLASSES = ("trainer.best_metric=probe_auroc", "task.label=side")
NUMBER = ("task=regression", "trainer.best_metric=probe_mae", "trainer.best_is=lower", "task.label=age")


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """32 studies, eight of them held out; every fifth lacks its labels; `age` goes with the side, `one` is constant."""
    url = write_dataset(tmp_path_factory.mktemp("adapt") / "shards", 32, held_out=8)
    manifest = Manifest.open(url)
    samples = list(manifest.samples)
    for row, sample in enumerate(samples):
        age = (40.0, 60.0)[row % 2]
        sample.labels = {} if row % 5 == 4 else {"side": ("left", "right")[row % 2], "age": age, "one": "x"}
    write_index(url, manifest.shards, samples, {"code": "test"})
    return url


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported encoder with fresh weights."""
    folder = tmp_path_factory.mktemp("encoder") / "export"
    job = compose.compose("pretrain", ["data.url=x", *SMALL])
    tokenizer = train_tokenizer((), 256, 1, 24)
    torch.manual_seed(3)
    Encoder(build_model(job.model, job.data, len(tokenizer)), tokenizer).save(folder)
    return folder


@pytest.fixture(scope="session")
def new_run(labelled: str, encoder: Path) -> Callable[..., Path]:
    """Creates a run folder of fm finetune as the command line would, without starting it."""

    def create(folder: Path, *words: str) -> Path:
        given = [f"data.url={labelled}", f"encoder={encoder}", f"run={folder}", *SHORT, *words]
        runs.open_run(compose.parse("finetune", given, []))
        return folder

    return create


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    started = Nursery()
    yield started
    started.close()
