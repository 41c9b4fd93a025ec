"""How a run would scale on a cluster: bytes sent per ZeRO stage, FLOPs of a step, and the time that both take.

The bytes are those that DeepSpeed sends (a test counts them at the sockets); the FLOPs are those of
:mod:`fm.engine.flops`; what a cluster gives is an assumption, named in :class:`Cluster`. ``python -m
fm.engine.scaling`` prints the tables of ``docs/scaling.md`` and draws its plot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from statistics import NormalDist
from typing import Any

from fm.config.data import DataConfig
from fm.config.model import VitTextConfig
from fm.engine.flops import transformer_flops

MASTER_BYTES = 4
BUCKET_ELEMENTS = 50_000_000
"""Elements of one collective, as :mod:`fm.parallel.strategy` sets them."""
AGREEMENTS = 4
"""Small collectives of a step that every rank waits for: loss, finite gradients, stop, metrics."""


class Kind(StrEnum):
    """A collective over all ranks."""

    ALL_REDUCE = "all-reduce"
    ALL_GATHER = "all-gather"
    REDUCE_SCATTER = "reduce-scatter"

    def sent(self, ranks: int) -> float:
        """Bytes that each rank sends per byte of the whole vector, in rings (Patarasuk and Yuan, 2009)."""
        return (2 if self is Kind.ALL_REDUCE else 1) * (ranks - 1) / ranks


class Hidden(StrEnum):
    """Behind which computation a collective may hide."""

    FORWARD = "forward"
    BACKWARD = "backward"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Transfer:
    """A collective of a step over a vector as long as the parameters."""

    what: str
    kind: Kind
    bytes_per_parameter: int
    hidden: Hidden
    per_module: bool = False
    """One call for every module with parameters, not one for every bucket."""


def transfers(stage: int, weight_bytes: int, *, gathered_again: bool = False) -> list[Transfer]:
    """What a step sends.

    DeepSpeed 0.19.8 all-reduces gradients at stages 1 and 2 too, where the ZeRO paper (arXiv 1910.02054, section 7)
    needs a reduce-scatter: a third more than the paper's volume.

    Args:
        stage: ZeRO stage, 0–3.
        weight_bytes: of a weight in the engine and of its gradient: 4, or 2 for bf16.
        gathered_again: whether ZeRO-3 frees the weights after the forward pass and gathers them anew for the backward
            pass: it does from 10⁹ parameters on (``stage3_max_reuse_distance``).
    """
    gradients, weights, every = Kind.ALL_REDUCE, Kind.ALL_GATHER, weight_bytes
    if stage == 3:
        again = [Transfer("weights, again", weights, every, Hidden.BACKWARD)] if gathered_again else []
        return [
            Transfer("teacher", weights, MASTER_BYTES, Hidden.NOTHING, per_module=True),
            Transfer("weights", weights, every, Hidden.FORWARD),
            *again,
            Transfer("gradients", Kind.REDUCE_SCATTER, every, Hidden.BACKWARD),
        ]
    found = [Transfer("gradients", gradients, every, Hidden.BACKWARD)]
    if stage > 0:
        found.append(Transfer("weights", weights, every, Hidden.NOTHING))
        if weight_bytes < MASTER_BYTES:
            found.append(Transfer("masters for the teacher", weights, MASTER_BYTES, Hidden.NOTHING))
    return found


def sent_bytes(stage: int, parameters: int, ranks: int, weight_bytes: int, *, gathered_again: bool = False) -> float:
    """Bytes that each rank sends in a step."""
    found = transfers(stage, weight_bytes, gathered_again=gathered_again)
    return sum(t.kind.sent(ranks) * t.bytes_per_parameter * parameters for t in found)


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What one GPU computes in a step."""

    parameters: int
    """Of everything that is trained."""
    modules: int
    """That hold parameters of their own."""
    flops_per_study: float
    studies: int
    """Studies per GPU and step, in one micro-batch."""
    spread: float = 0.3
    """Standard deviation of a study's FLOPs over their mean: a study is as long as its tissue."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """GPUs and their links; the defaults are H100 SXM in nodes of eight with one NDR port each."""

    gpus_per_node: int = 8
    tflops: float = 989.0
    """Dense bf16 peak of a GPU."""
    utilisation: float = 0.35
    """Share of the peak that a step's computation reaches on one GPU."""
    node_gb_s: float = 450.0
    """What a GPU sends within its node, in 10⁹ bytes a second and one direction."""
    port_gb_s: float = 50.0
    """What each GPU's network port sends."""
    link_share: float = 0.8
    """Share of a link that a collective of large buckets reaches."""
    hop_s: float = 10e-6
    """Latency of a collective, times the binary logarithm of the ranks."""

    def bandwidth(self, ranks: int) -> float:
        """Bytes a second at which a rank's share of a ring flows: across nodes all ports of a node carry it."""
        node = self.node_gb_s if ranks > 1 else math.inf
        ports = self.port_gb_s * self.gpus_per_node if ranks > self.gpus_per_node else math.inf
        return min(node, ports) * 1e9 * self.link_share

    def latency(self, ranks: int) -> float:
        """Seconds that a collective takes whatever its size."""
        return self.hop_s * math.log2(ranks)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Predicted seconds of a step."""

    compute_s: float
    """Of the mean rank."""
    imbalance_s: float
    """What the rank with the longest studies needs more: all wait for it."""
    exposed_s: float
    """Of communication that hides behind nothing."""
    sent_gb: float

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self.compute_s + self.imbalance_s + self.exposed_s

    @property
    def efficiency(self) -> float:
        """Against as many GPUs without any communication or waiting."""
        return self.compute_s / self.seconds


def predict(work: Work, stage: int, ranks: int, cluster: Cluster, weight_bytes: int = 2) -> Step:
    """The step of `ranks` GPUs that have `work` each; data arrives in time, nothing fails."""
    compute = work.flops_per_study * work.studies / (cluster.tflops * 1e12 * cluster.utilisation)
    found = transfers(stage, weight_bytes, gathered_again=work.parameters > 1e9) if ranks > 1 else []
    # A third of the student's time is its forward pass; the teacher's lies there too.
    room = {Hidden.FORWARD: compute / 3, Hidden.BACKWARD: compute * 2 / 3, Hidden.NOTHING: 0.0}
    exposed = AGREEMENTS * cluster.latency(ranks)
    sent = 0.0
    for hidden, seconds in room.items():
        taken = 0.0
        for transfer in (t for t in found if t.hidden is hidden):
            volume = transfer.kind.sent(ranks) * transfer.bytes_per_parameter * work.parameters
            calls = work.modules if transfer.per_module else math.ceil(work.parameters / BUCKET_ELEMENTS)
            taken += volume / cluster.bandwidth(ranks) + calls * cluster.latency(ranks)
            sent += volume
        exposed += max(0.0, taken - seconds)
    return Step(
        compute_s=compute,
        imbalance_s=compute * work.spread / math.sqrt(work.studies) * _largest_of(ranks),
        exposed_s=exposed,
        sent_gb=sent / 1e9,
    )


def _largest_of(ranks: int) -> float:
    """The mean of the largest of so many standard normal numbers (Blom, 1958)."""
    return NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25)) if ranks > 1 else 0.0


def study_flops(
    model: VitTextConfig, data: DataConfig, *, series: int, tissue_tokens: float, head_parameters: int
) -> float:
    """Model FLOPs of a study with its report, forward and backward, teacher included.

    Args:
        model: the architecture.
        data: views; a crop of e times the box's edges holds e³ of the tokens.
        series: series of the study.
        tissue_tokens: tokens of a whole series.
        head_parameters: of the matrices of the prototype head.
    """
    patch, prefix = math.prod(model.patch_voxels), 1 + model.registers

    def view(tokens: float) -> float:
        blocks = transformer_flops(round(tokens) + prefix, model.dim, model.depth, model.mlp_ratio)
        return blocks + 2 * round(tokens) * patch * model.dim + 2 * head_parameters

    wide = data.global_views * view(tissue_tokens * ((data.global_extent + 1) / 2) ** 3 * data.global_keep)
    narrow = data.local_views * view(tissue_tokens * data.local_extent**3 * data.local_keep)
    text = transformer_flops(model.text_max_tokens, model.text_dim, model.text_depth, 4.0)
    return series * (3 * (wide + narrow) + wide) + 3 * text


def work_of(model: str, studies: int, *, series: int = 4, tissue_tokens: float = 581.0) -> Work:
    """The work of a shipped model (``base``, ``large``, ``huge``) with the shipped data and objective.

    581 tokens is the mean over eight typical head series at 8×16×16 voxels a patch (``tests/benchmarks/gpu.py``).
    """
    import torch

    from fm.config.compose import compose
    from fm.objectives import build_student

    job = compose("pretrain", ["data.url=unread", f"model={model}"])
    with torch.device("meta"):
        student = build_student(job.model, job.objective, job.data, job.data.vocabulary_size)
    flops = study_flops(
        job.model,
        job.data,
        series=series,
        tissue_tokens=tissue_tokens,
        head_parameters=sum(p.numel() for head in student.prototype_heads for p in head.parameters() if p.ndim == 2),
    )
    return Work(
        parameters=sum(p.numel() for p in student.parameters() if p.requires_grad),
        modules=sum(bool(list(part.parameters(recurse=False))) for part in student.modules()),
        flops_per_study=flops,
        studies=studies,
    )


MODELS = {"base": "ViT-B", "large": "ViT-L", "huge": "ViT-H"}
RANKS = (8, 64, 512)
PLOTTED = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def tables(cluster: Cluster) -> str:
    """Markdown: the step of each model and stage at 8, 64 and 512 GPUs, for 32 and for 8 studies a GPU."""
    lines = []
    for studies in (32, 8):
        head = ["model", "ZeRO", "GPUs", "sent", "compute", "in the open", "waiting", "step", "efficiency"]
        lines += [f"\n{studies} studies a GPU and step:\n", "| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
        for name, words in MODELS.items():
            work = work_of(name, studies)
            for stage in (1, 3):
                for ranks in RANKS:
                    step = predict(work, stage, ranks, cluster)
                    cells = [
                        f"{words}, {work.parameters / 1e6:.0f} M",
                        "1, 2" if stage == 1 else "3",
                        str(ranks),
                        f"{step.sent_gb:.1f} GB",
                        *(f"{1e3 * s:.0f} ms" for s in (step.compute_s, step.exposed_s, step.imbalance_s)),
                        f"{1e3 * step.seconds:.0f} ms",
                        f"{step.efficiency:.0%}",
                    ]
                    lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(path: Path, cluster: Cluster) -> None:
    """Efficiency against GPUs, with and without the unevenness of studies, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panes = pyplot.subplots(1, 2, figsize=(9.5, 3.8), sharey=True)
    for pane, studies in zip(panes, (32, 8), strict=True):
        for (name, words), colour in zip(MODELS.items(), ("tab:blue", "tab:orange", "tab:green"), strict=True):
            work = work_of(name, studies)
            for stage, style in ((1, "-"), (3, "--")):
                steps = [predict(work, stage, ranks, cluster) for ranks in PLOTTED]
                label = f"{words}, ZeRO-{'1 and 2' if stage == 1 else '3'}"
                pane.plot(PLOTTED, [s.efficiency for s in steps], style, color=colour, label=label)
                links: Any = [s.compute_s / (s.compute_s + s.exposed_s) for s in steps]
                pane.plot(PLOTTED, links, style, color=colour, linewidth=0.8, alpha=0.5)
        pane.set(xscale="log", title=f"{studies} studies a GPU", xlabel="GPUs", ylim=(0.5, 1.01))
        pane.set_xticks(PLOTTED, [str(n) for n in PLOTTED], fontsize=8)
        pane.minorticks_off()
        pane.grid(alpha=0.3)
    panes[0].set_ylabel("predicted efficiency")
    panes[0].legend(fontsize=7, loc="lower left")
    panes[1].text(1, 0.52, "thin: communication alone", fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    pyplot.close(figure)


if __name__ == "__main__":
    print(tables(Cluster()))
    draw(Path(__file__).resolve().parents[2] / "docs" / "images" / "scaling.png", Cluster())
