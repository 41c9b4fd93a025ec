"""Faults that strike real workers from within, at a phase of their training (rows 34 to 44 of the fault battery)."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from fm.config import compose
from fm.config.errors import ConfigError
from fm.engine.checkpoint import CheckpointStore
from fm.engine.places import run_of
from fm.engine.verdict import Outcome, read_verdict
from launch import runs
from launch.entry import Topology, _exit_code, torchrun
from launch.verbs.main import main
from tests.data import object_storage
from tests.data.object_storage import Proxy

from .conftest import seen

Rows = Callable[[Path], list[dict[str, Any]]]
Train = Callable[..., list[int]]
SHARED = ("step", "loss", "self_distillation", "image_text", "koleo", "gradient_norm", "teacher_momentum", "volumes")
WORDS = (
    "max_steps=12",
    "trainer.checkpoint_every_steps=2",
    "trainer.keep_last=2",
    "trainer.deterministic=true",
    "trainer.precision=fp32",
)
KILLED = -signal.SIGKILL


def trace(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in SHARED) for row in rows]


def fault(rank: int | str, phase: str, turn: int, deed: str) -> dict[str, Any]:
    return {"rank": rank, "phase": phase, "turn": turn, "deed": deed}


def failures(run: Path) -> dict[int, str]:
    """The message of each rank that failed."""
    found = [json.loads(path.read_text()) for path in (run / "errors").glob("*.json")]
    return {entry["rank"]: entry["message"] for entry in found}


def go_on(run: Path, *words: str) -> None:
    """Record a further attempt that changes something, as the command line does."""
    runs.open_run(compose.parse("pretrain", [f"run={run}", *words], []))


@pytest.fixture(scope="module")
def train(nursery: Any) -> Train:
    return nursery.train  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, dataset: str, new_run: Callable[..., Path], train: Train) -> Path:
    """The undisturbed run."""
    run = new_run(tmp_path_factory.mktemp("calm") / "run", dataset, *WORDS)
    assert train(run) == [0, 0]
    return run


@pytest.fixture
def run(tmp_path: Path, dataset: str, calm: Path, new_run: Callable[..., Path]) -> Path:
    """The same run, not begun."""
    run = new_run(tmp_path / "run", dataset, *WORDS)
    shutil.copytree(calm / "tokenizer", run / "tokenizer")
    return run


STEPS = ["forward", "all-reduce", "backward", "optimizer", "teacher", "record", "save"]
WRITES = ["writing", "manifest", "rename", "commit", "prune"]


@pytest.mark.full
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("phase", [*STEPS, *WRITES])
def test_row_34_killed_at_any_phase(phase: str, rank: int, run: Path, calm: Path, train: Train, rows: Rows) -> None:
    """SIGKILL in the sixth step, or in the third save; run again, it ends as the undisturbed run, bit for bit."""
    if rank == 1 and phase in WRITES[1:]:
        pytest.skip("rank 0 alone commits")
    # Rank 0 writes five files a save (moments, student, teacher, state, config), rank 1 its moments alone.
    turn = 6 if phase in STEPS else 11 if (phase, rank) == ("writing", 0) else 3
    codes = train(run, fault(rank, phase, turn, "SIGKILL"))
    assert codes[rank] == KILLED and codes[1 - rank] != 0
    assert CheckpointStore(run / "checkpoints").newest(required=True) is not None
    assert train(run) == [0, 0]
    assert trace(rows(run)) == trace(rows(calm))
    for name in ("student", "teacher", "moments-00000-of-00002", "moments-00001-of-00002"):
        mine, theirs = (folder / f"checkpoints/step-00000012/{name}.safetensors" for folder in (run, calm))
        assert mine.read_bytes() == theirs.read_bytes(), name


def test_rows_35_and_36_signals_in_mid_step_and_during_the_save(run: Path, train: Train, rows: Rows) -> None:
    """One rank is told twice in its backward pass, and both again while they save: one checkpoint, exit code 75."""
    twice = "terminate-twice"
    codes = train(run, fault(1, "backward", 3, twice), fault("all", "writing", 4, twice))
    assert codes == [75, 75]
    store = CheckpointStore(run / "checkpoints")
    assert store.steps() == [2, 3] and store.newest(required=True) == (3, store.folder(3))
    assert rows(run)[-1]["step"] == 3
    verdict = read_verdict(run, rows(run)[-1]["attempt"])
    assert verdict is not None and verdict.outcome is Outcome.REQUEUE and verdict.step == 3


@pytest.mark.full
def test_row_36_killed_while_it_saves_after_a_signal(run: Path, calm: Path, train: Train, rows: Rows) -> None:
    codes = train(run, fault(0, "forward", 5, "SIGTERM"), fault(0, "commit", 3, "SIGKILL"))
    assert codes[0] == KILLED
    assert CheckpointStore(run / "checkpoints").steps() == [2, 4]
    assert train(run) == [0, 0]
    assert trace(rows(run)) == trace(rows(calm))


TOLD = [("torchrun", 1), ("torchrun", 2), ("rank 0", 1), ("rank 1", 1), ("all", 1), ("rank 0", 2), ("all", 2)]
"""Whom SIGTERM reaches, and how often."""


@pytest.mark.full
@pytest.mark.parametrize(("target", "times"), TOLD)
def test_row_35_a_save_longer_than_torchruns_patience(target: str, times: int, run: Path) -> None:
    """torchrun kills workers 30 s after SIGTERM unless told otherwise; this save takes 40 s, whoever is told."""
    script = Path(__file__).with_name("slow_save.py")
    command = torchrun(Topology(processes=2, threads=1), 120, [str(script), str(run), "40"])
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (run / "metrics.jsonl").is_file() or len((run / "metrics.jsonl").read_text().splitlines()) < 1:
        assert process.poll() is None
        time.sleep(0.05)
    began, agent = time.monotonic(), psutil.Process(process.pid)
    ranks = {f"rank {worker.environ()['RANK']}": [worker] for worker in agent.children()}
    chosen = {"torchrun": [agent], "all": [agent, *ranks["rank 0"], *ranks["rank 1"]], **ranks}[target]
    for turn in range(times):
        for one in chosen:
            one.send_signal(signal.SIGTERM)
        if turn + 1 < times:
            time.sleep(3)
    returncode = process.wait(300)
    assert time.monotonic() - began > 40
    assert _exit_code(run, "slow", returncode) == 75
    store = CheckpointStore(run / "checkpoints")
    (last,) = [step for step in store.steps() if step == rows_of(run)[-1]["step"]]
    assert store.newest(required=True) == (last, store.folder(last))


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_training(run: Path, calm: Path, rows: Rows, tolerance: float) -> None:
    """Every study once an epoch (24 studies, 8 a step), and the losses of the run that kept its layout."""
    steps, last = seen(run, 4), len(rows(calm))
    assert sorted(steps) == list(range(1, last + 1))
    for epoch in range(last // 3):
        counts = Counter(key for step in range(3 * epoch + 1, 3 * epoch + 4) for key in steps[step])
        assert len(counts) == 24 and set(counts.values()) == {1}
    for mine, theirs in zip(rows(run), rows(calm), strict=True):
        assert mine["step"] == theirs["step"]
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=tolerance), mine["step"]


def test_row_37_two_processes_become_one_and_zero_2_becomes_3_and_0(
    run: Path, calm: Path, train: Train, rows: Rows
) -> None:
    assert train(run, fault(0, "backward", 5, "SIGTERM")) == [75, 75]
    go_on(run, "trainer.stage=3")
    assert train(run, fault(0, "backward", 3, "SIGTERM")) == [75, 75]
    go_on(run, "trainer.stage=0", "launch.processes=1", "data.micro_batch_size=8")
    assert train(run, ranks=1) == [0]
    assert_same_training(run, calm, rows, 1e-5)
    weights = [load_file(folder / "export" / "model.safetensors") for folder in (run, calm)]
    assert all(weights[0][name].sub(value).abs().max() < 1e-4 for name, value in weights[1].items())


STAGES = {"fp32": [2, 3, 0, 1, 0, 2, 0, 3, 1, 2, 1, 3, 2], "bf16": [2, 3, 1, 2, 1, 3, 2]}
"""The ZeRO stage of each attempt: every stage into every other; bf16 knows no stage 0."""
PROCESSES = [2, 4, 1]
"""Of the first attempts, and so on in turn."""


@pytest.mark.full
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_row_37_every_layout_into_every_other(
    precision: str, tmp_path: Path, dataset: str, new_run: Callable[..., Path], calm: Path, train: Train, rows: Rows
) -> None:
    """Each attempt is stopped by a signal after a step and the next goes on elsewhere; the last makes the others."""
    stages = STAGES[precision]
    assert len(set(pairwise(stages))) == len(stages) - 1 == len(set(stages)) * (len(set(stages)) - 1)
    words = (*WORDS, "max_steps=15", f"trainer.precision={precision}", "data.micro_batch_size=2")
    run, same = (new_run(tmp_path / name, dataset, *words) for name in ("run", "same"))
    for folder in (run, same):
        shutil.copytree(calm / "tokenizer", folder / "tokenizer")
    assert train(same) == [0, 0]
    for number, (ranks, stage) in enumerate(zip(cycle(PROCESSES), stages, strict=False)):
        go_on(run, f"trainer.stage={stage}", f"launch.processes={ranks}")
        stop = [] if number == len(stages) - 1 else [fault(0, "backward", 1, "SIGTERM")]
        assert set(train(run, *stop, ranks=ranks)) == ({75} if stop else {0})
    assert_same_training(run, same, rows, 1e-5 if precision == "fp32" else 1e-2)
    assert (run / "events.log").read_text().count("the layout has changed") == len(stages) - 1


@pytest.mark.full
def test_row_40_a_disk_that_fills_while_it_trains(run: Path, train: Train, rows: Rows) -> None:
    """The system refuses to write from step 5 on: training goes on and says so; the earlier checkpoints stay."""
    assert train(run, fault("all", "forward", 5, "fill-disk")) == [1, 1]
    store = CheckpointStore(run / "checkpoints")
    assert store.steps() == [2, 4] and store.newest(required=True) == (4, store.folder(4))
    assert rows(run)[-1]["step"] == 12
    assert "training goes on" in (run / "events.log").read_text()
    assert "could not be saved" in failures(run)[0]
    assert train(run) == [0, 0]


def test_row_42_a_loss_spike_on_one_rank_is_skipped_by_all(
    tmp_path: Path, dataset: str, new_run: Callable[..., Path], train: Train, rows: Rows
) -> None:
    """Skipped alone, it is a step like any other; several in a row stop the run."""
    words = ("max_steps=12", "trainer.spike_window=4", "trainer.max_bad_steps=3")
    run = new_run(tmp_path / "run", dataset, *words)
    spikes = [fault(1, "loss", turn, "spike") for turn in (6, 9, 10, 11)]
    assert train(run, *spikes) == [1, 1]
    assert [row["applied"] for row in rows(run)] == [turn not in (6, 9, 10, 11) for turn in range(1, 12)]
    kept = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in kept] == [6, 9, 10, 11]
    assert all(entry["reason"] == "spike" and len(set(entry["keys"])) == 8 for entry in kept)
    assert "3 steps up to 11 were skipped in a row" in failures(run)[0]
    assert all(math.isfinite(row["loss"]) for row in rows(run))


def test_row_43_a_rank_that_hangs(
    tmp_path: Path, dataset: str, new_run: Callable[..., Path], train: Train, rows: Rows
) -> None:
    run = new_run(tmp_path / "run", dataset, "max_steps=12", "trainer.hang_timeout_s=6")
    began = time.monotonic()
    assert train(run, fault(1, "backward", 3, "SIGSTOP"), timeout_s=200) == [1, KILLED]
    assert time.monotonic() - began < 150
    assert rows(run)[-1]["step"] < 12
    message = failures(run)[0]
    assert "no progress" in message and "rank 1" in message and "trainer.hang_timeout_s=6" in message
    for rank in (0, 1):
        (stacks,) = (run / "stacks").glob(f"*-rank-{rank:05d}.txt")
        assert "_backward_and_step" in stacks.read_text()


def test_row_44_a_data_worker_is_killed(
    tmp_path: Path, dataset: str, new_run: Callable[..., Path], train: Train
) -> None:
    run = new_run(tmp_path / "run", dataset, "max_steps=500", "data.workers=1")
    began = time.monotonic()
    assert train(run, fault(0, "backward", 3, "kill-data-worker"), timeout_s=200) == [1, 1]
    assert time.monotonic() - began < 120
    assert "a data worker of rank 0 was killed" in failures(run)[0] and "data.prefetch=1" in failures(run)[0]


@pytest.mark.full
def test_row_37_moments_cut_anew_change_nothing(
    run: Path, calm: Path, train: Train, rows: Rows, tmp_path: Path
) -> None:
    """fm checkpoint convert makes a run folder of three shards; two processes go on with it, bit for bit."""
    assert train(run, fault(0, "backward", 5, "SIGTERM")) == [75, 75]
    out = tmp_path / "converted"
    assert main(["checkpoint", "convert", f"from_run={run}", f"out={out}", "form=run", "ranks=3"]) == 0
    assert len(list((out / "checkpoints" / "step-00000005").glob("moments-*-of-00003.safetensors"))) == 3
    go_on(out)
    assert train(out) == [0, 0]
    assert trace(rows(out)) == trace(rows(calm))
    mine, theirs = (load_file(folder / "export" / "model.safetensors") for folder in (out, calm))
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())


PLACE = "trainer.checkpoint_url=s3://bucket/runs/x"


@pytest.mark.full
def test_rows_34_and_40_checkpoints_in_object_storage_outlive_the_folder(
    tmp_path: Path, dataset: str, calm: Path, new_run: Callable[..., Path], train: Train, rows: Rows, s3: Proxy
) -> None:
    """503s, SIGKILL of rank 0 in mid-upload, the folder lost: run again, it ends as the undisturbed run does."""
    # Rank 0 puts nine objects a save: moments, student, teacher, state, config, trace, mark, manifest, COMMITTED.
    run, environment = new_run(tmp_path / "run", dataset, *WORDS, PLACE), object_storage.environment(s3.url)
    shutil.copytree(calm / "tokenizer", run / "tokenizer")
    s3.write_faults.extend(["503", "503"])
    codes = train(run, fault(0, "upload", 22, "SIGKILL"), environment=environment)
    assert codes[0] == KILLED and codes[1] != 0
    assert not (run / "checkpoints").exists() and not s3.write_faults
    shutil.rmtree(run)
    with pytest.raises(ConfigError, match=r"holds another run: optim\.learning_rate is"):
        new_run(run, dataset, *WORDS, PLACE, "optim.learning_rate=0.5")
    new_run(run, dataset, *WORDS, PLACE)
    assert train(run, environment=environment) == [0, 0]
    assert "resumes at step 4 of 12" in (run / "events.log").read_text()
    assert trace(rows(run)) == trace(rows(calm)) and not (run / "fetched").exists()
    mine, theirs = (load_file(folder / "export" / "model.safetensors") for folder in (run, calm))
    assert all(torch.equal(mine[name], value) for name, value in theirs.items())
    with run_of("s3://bucket/runs/x") as (_, store):
        assert store.steps() == [10, 12]


@pytest.mark.full
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("phase", ["upload", "mark", "put-manifest", "put-commit", "prune"])
def test_row_34_killed_at_any_phase_of_an_upload(
    phase: str,
    rank: int,
    tmp_path: Path,
    dataset: str,
    calm: Path,
    new_run: Callable[..., Path],
    train: Train,
    rows: Rows,
    s3: Proxy,
) -> None:
    if rank == 1 and phase not in ("upload", "mark"):
        pytest.skip("rank 0 alone commits")
    run, environment = new_run(tmp_path / "run", dataset, *WORDS, PLACE), object_storage.environment(s3.url)
    shutil.copytree(calm / "tokenizer", run / "tokenizer")
    turn = {(0, "upload"): 22, (1, "upload"): 5}.get((rank, phase), 3)
    codes = train(run, fault(rank, phase, turn, "SIGKILL"), environment=environment)
    assert codes[rank] == KILLED and codes[1 - rank] != 0
    assert train(run, environment=environment) == [0, 0]
    assert "resumes at step" in (run / "events.log").read_text()
    assert trace(rows(run)) == trace(rows(calm))


@pytest.mark.full
def test_rows_35_and_36_signals_while_it_uploads(
    tmp_path: Path, dataset: str, calm: Path, new_run: Callable[..., Path], train: Train, rows: Rows, s3: Proxy
) -> None:
    """Told twice in a step and again while it uploads: one good checkpoint more, exit code 75."""
    run, environment = new_run(tmp_path / "run", dataset, *WORDS, PLACE), object_storage.environment(s3.url)
    twice = "terminate-twice"
    faults = (fault(1, "backward", 3, twice), fault("all", "upload", 4, twice))
    assert train(run, *faults, environment=environment) == [75, 75]
    with run_of("s3://bucket/runs/x") as (_, store):
        assert store.steps() == [2, 3]
        store.verify(3)
    assert rows(run)[-1]["step"] == 3


@pytest.mark.full
def test_row_40_a_store_that_fails_while_it_trains(
    tmp_path: Path, dataset: str, calm: Path, new_run: Callable[..., Path], train: Train, rows: Rows, s3: Proxy
) -> None:
    """From some upload on every write is refused: training goes on and says so; the earlier checkpoints stay."""
    run = new_run(tmp_path / "run", dataset, *WORDS, PLACE, "data.read_attempts=2", "data.read_wait_s=0.01")
    shutil.copytree(calm / "tokenizer", run / "tokenizer")
    environment = object_storage.environment(s3.url)
    waiter = threading.Thread(target=_refuse_after, args=(s3, run, 5), daemon=True)
    waiter.start()
    assert train(run, environment=environment) == [1, 1]
    waiter.join()
    s3.always_write = ""
    assert rows(run)[-1]["step"] == 12
    assert "training goes on" in (run / "events.log").read_text() and "could not be saved" in failures(run)[0]
    assert train(run, environment=environment) == [0, 0]
    assert trace(rows(run)) == trace(rows(calm))


def _refuse_after(proxy: Proxy, run: Path, step: int) -> None:
    while not (run / "metrics.jsonl").is_file() or f'"step": {step},' not in (run / "metrics.jsonl").read_text():
        time.sleep(0.01)
    proxy.always_write = "503"
