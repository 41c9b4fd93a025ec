"""Cost as work grows: the encoder against tokens, the study encoder against series, opening and planning against
studies. Processor time and memory, each size in a process of its own.

Run by ``make bench``; ``python -m tests.benchmarks.test_growth docs/images/growth.png`` draws the picture.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from fm.batch import PackedTokens
from fm.models import FmConfig, FmModel
from tests.benchmarks import test_index
from tests.benchmarks.measure import peak_mb, processor, table

TOKENS = (256, 512, 1024, 2048, 4096, 8192)
SERIES = (1, 2, 4, 8, 16)
STUDIES = (1_000, 10_000, 100_000, 1_000_000)
SERIES_TOKENS = 256
DIM, DEPTH, HEADS, PATCH = 384, 3, 6, (8, 16, 16)
ROUNDS = 3

Found = dict[str, float]


def _pack(tokens: int, series: int) -> PackedTokens:
    """One study of so many series of so many tokens each."""
    g = torch.Generator().manual_seed(0)
    zeros = torch.zeros(series, dtype=torch.int64)
    return PackedTokens(
        patches_TP=torch.randn(tokens * series, int(np.prod(PATCH)), generator=g),
        position_T3=200 * torch.rand(tokens * series, 3, generator=g),
        offsets_S1=tokens * torch.arange(series + 1),
        contrast_S=zeros,
        plane_S=zeros,
        agent_S=zeros,
        step_S33=torch.eye(3).expand(series, 3, 3).clone(),
        study_S=zeros,
    )


def _model(study_encoder: str = "gated_pool") -> FmModel:
    torch.manual_seed(0)
    return FmModel(
        FmConfig(
            patch_voxels=list(PATCH), dim=DIM, depth=DEPTH, heads=HEADS, study_encoder=study_encoder, text_dim=32,
            text_depth=1, text_heads=2, vocab_size=50, embed_dim=64,
        )
    )  # fmt: skip


def _cpu_seconds(action: Callable[[], object], rounds: int = ROUNDS) -> float:
    seconds = []
    for _ in range(rounds):
        started = time.process_time()
        action()
        seconds.append(time.process_time() - started)
    return float(np.median(seconds))


def encoder(tokens: int) -> Found:
    """Forward and backward of the image encoder over one series."""
    model, views = _model(), _pack(tokens, 1)
    before = peak_mb()

    def step() -> None:
        model.image(views).tokens_TD.square().mean().backward()

    found = {"cpu_s": _cpu_seconds(step, 1 if tokens > 2048 else ROUNDS)}
    return found | {"mb": peak_mb() - before}


def study(series: int) -> Found:
    """Forward and backward of one study: encoder and study encoder, and either study encoder alone."""
    views = _pack(SERIES_TOKENS, series)
    found = {}
    for kind in ("gated_pool", "attention"):
        model = _model(kind)
        class_SD = torch.randn(series, DIM, requires_grad=True)
        tokens_TD = torch.randn(SERIES_TOKENS * series, DIM, requires_grad=True)

        def pool(model: FmModel = model, a: torch.Tensor = class_SD, b: torch.Tensor = tokens_TD) -> None:
            model.pool_studies(a, b, views, 1).square().mean().backward()

        found[f"{kind}_s"] = _cpu_seconds(pool)
    model = _model()
    found["whole_s"] = _cpu_seconds(lambda: model.encode_image(views, 1).study_BD.square().mean().backward())
    return found


def index(studies: int) -> Found:
    """Opening a manifest and planning batches of it."""
    with tempfile.TemporaryDirectory() as folder:
        test_index.make_index(Path(folder), studies)
        program = "import json, sys; from tests.benchmarks.test_index import measure; "
        program += "print(json.dumps(measure(sys.argv[1])))"
        return _answer(program, folder)


def _answer(program: str, *words: str) -> Found:
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    found: Found = json.loads(done.stdout)
    return found


def _apart(name: str, size: int) -> Found:
    """One measurement in a fresh process, so that memory is its own."""
    program = "import json, sys, torch; torch.set_num_threads(1); from tests.benchmarks import test_growth as g; "
    return _answer(program + "print(json.dumps(getattr(g, sys.argv[1])(int(sys.argv[2]))))", name, str(size))


def measure() -> dict[str, list[Found]]:
    """Everything, from small to large."""
    return {
        "encoder": [_apart("encoder", size) for size in TOKENS],
        "study": [_apart("study", size) for size in SERIES],
        "index": [index(size) for size in STUDIES],
    }


def exponent(sizes: tuple[int, ...], values: list[float]) -> float:
    """By which power of the size a cost grows between the two largest sizes."""
    return float(np.log(values[-1] / values[-2]) / np.log(sizes[-1] / sizes[-2]))


def report(found: dict[str, list[Found]]) -> None:
    """Print the figures as tables."""
    rows = [[f"{n:,}", f"{f['cpu_s']:.3g}", f"{1e6 * f['cpu_s'] / n:.0f}", f"{f['mb']:.0f}"]
            for n, f in zip(TOKENS, found["encoder"], strict=True)]  # fmt: skip
    head = ["tokens of a series", "CPU s, forward + backward", "µs a token", "MB above the model"]
    table(f"Encoder, {DEPTH} blocks of {DIM}", head, rows, ["torch"])
    rows = [[str(n), f"{f['whole_s']:.3g}", f"{1e3 * f['gated_pool_s']:.1f}", f"{1e3 * f['attention_s']:.1f}"]
            for n, f in zip(SERIES, found["study"], strict=True)]  # fmt: skip
    head = ["series of a study", "CPU s, encoder and pooling", "ms, gated pooling alone", "ms, attention alone"]
    table(f"Study of series of {SERIES_TOKENS} tokens", head, rows, ["torch"])
    rows = [[f"{n:,}", f"{f['open_cpu_s']:.3g}", f"{f['shuffled_batch_ms']:.3g}", f"{f['shuffled_epoch_s']:.3g}",
             f"{f['peak_mb']:.0f}"] for n, f in zip(STUDIES, found["index"], strict=True)]  # fmt: skip
    head = ["studies", "CPU s to open", "ms to plan a batch", "s to order an epoch", "MB of the process"]
    table("Opening and planning", head, rows, ["pyarrow"])


def draw(found: dict[str, list[Found]], path: Path) -> None:
    """The same as a picture: logarithmic axes, dotted lines of slope 1."""
    figure = Figure(figsize=(13, 6.6), layout="constrained", dpi=110)
    axes = figure.subplots(2, 3)
    encoder_, study_, index_ = found["encoder"], found["study"], found["index"]
    panels: list[tuple[tuple[int, ...], dict[str, list[float]], str, str]] = [
        (TOKENS, {"forward + backward": [f["cpu_s"] for f in encoder_]}, "tokens of a series", "CPU s"),
        (SERIES, {"encoder and pooling": [f["whole_s"] for f in study_],
                  "attention study encoder alone": [f["attention_s"] for f in study_],
                  "gated pooling alone": [f["gated_pool_s"] for f in study_]}, "series of a study", "CPU s"),
        (STUDIES, {"open the manifest": [f["open_cpu_s"] for f in index_],
                   "order an epoch, by the clock": [f["shuffled_epoch_s"] for f in index_]}, "studies of a dataset",
         "CPU s"),
        (TOKENS, {"above the model": [f["mb"] for f in encoder_]}, "tokens of a series", "memory, MB"),
        (SERIES, {"encoder and pooling": [1e3 * f["whole_s"] / n for n, f in zip(SERIES, study_, strict=True)]},
         "series of a study", "CPU ms a series"),
        (STUDIES, {"plan a batch of 256, ms": [f["shuffled_batch_ms"] for f in index_],
                   "memory of the process, MB": [f["peak_mb"] for f in index_]}, "studies of a dataset", "ms, MB"),
    ]  # fmt: skip
    titles = ("Encoder: one series", f"Study: series of {SERIES_TOKENS} tokens", "Dataset", "", "", "")
    for panel, (sizes, lines, across, up), title in zip(axes.flat, panels, titles, strict=True):
        for (name, values), colour in zip(lines.items(), ("#0072b2", "#d55e00", "#009e73"), strict=False):
            panel.plot(sizes, values, "o-", color=colour, label=name, markersize=4)
        first = next(iter(lines.values()))
        if title or up == "memory, MB":
            panel.plot(sizes, [first[0] * n / sizes[0] for n in sizes], ":", color="#9aa5b1", label="in proportion")
        panel.set(xscale="log", yscale="log", xlabel=across, ylabel=up, title=title)
        panel.set_xticks(sizes, [f"{n:,}" for n in sizes])
        panel.set_xticks([], minor=True)
        panel.grid(which="major", color="#e4e7eb")
        panel.legend(frameon=False, fontsize=8.5)
    figure.suptitle(
        f"Cost as work grows: one core of {processor()}, {DEPTH} blocks of {DIM} channels, fp32", fontsize=10
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": ""})


def test_cost_as_work_grows(tmp_path: Path) -> None:
    """No bar on time, but on how it grows: no worse than the square of tokens, and in proportion to everything else."""
    found = measure()
    report(found)
    draw(found, tmp_path / "growth.png")
    print(f"picture: {tmp_path / 'growth.png'}")
    assert exponent(TOKENS, [f["cpu_s"] for f in found["encoder"]]) < 2.2
    assert exponent(TOKENS, [f["mb"] for f in found["encoder"]]) < 1.3, "attention keeps no T × T matrix"
    assert exponent(SERIES, [f["whole_s"] for f in found["study"]]) < 1.3
    assert exponent(STUDIES, [f["open_cpu_s"] for f in found["index"]]) < 1.3
    assert found["index"][-1]["shuffled_batch_ms"] < 5


if __name__ == "__main__":
    results = measure()
    report(results)
    draw(results, Path(sys.argv[1]))
