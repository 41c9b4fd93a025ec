"""Speed of the packed ViT on one GPU: ``python tests/benchmarks/gpu.py``. Needs torch and this clone, nothing else.

Forward and backward of ViT-B and ViT-L in bf16 over a pack of real lengths: tokens a second packed and padded, share of
the GPU's peak (MFU), peak memory with and without checkpointed blocks, and the kernels that take the time.
``--smoke`` runs the same code on a CPU with a toy model, to see that it works.
"""

from __future__ import annotations

import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

CLONE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CLONE))
# The package's own __init__ wants transformers; its modules below do not.
sys.modules["fm.models"] = types.ModuleType("fm.models")
sys.modules["fm.models"].__path__ = [str(CLONE / "fm" / "models")]

from fm.batch import PackedTokens  # noqa: E402
from fm.models.vit import VisionTransformer  # noqa: E402

PATCH = (8, 16, 16)
SIZES = {"ViT-B": (768, 12, 12), "ViT-L": (1024, 24, 16)}
LENGTHS = [405, 520, 610, 675, 340, 768, 880, 450] * 6
"""Tokens of the tissue of eight typical series, six times over."""
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "B200": 2250.0, "A100": 312.0, "L40S": 362.0}
"""Dense bf16, from NVIDIA's data sheets (SXM); other cards print no MFU."""


def build(dim: int, depth: int, heads: int, device: str) -> VisionTransformer:
    config: Any = SimpleNamespace(
        patch_voxels=PATCH,
        patch_stem="linear",
        dim=dim,
        depth=depth,
        heads=heads,
        mlp="gelu",
        mlp_ratio=4.0,
        registers=4,
        qk_norm=True,
        layer_scale=1e-5,
        drop_path=0.0,
        rope_min_period_mm=16.0,
        rope_max_period_mm=800.0,
        absolute_position=True,
    )
    torch.manual_seed(0)
    return VisionTransformer(config).to(device, torch.bfloat16)


def pack(lengths: list[int], device: str) -> PackedTokens:
    tokens, series = sum(lengths), len(lengths)
    zero = torch.zeros(series, dtype=torch.int64)
    return PackedTokens(
        patches_TP=torch.randn(tokens, PATCH[0] * PATCH[1] * PATCH[2]),
        position_T3=80 * torch.randn(tokens, 3),
        offsets_S1=torch.tensor([0, *lengths]).cumsum(0),
        contrast_S=zero,
        plane_S=zero,
        agent_S=zero,
        step_S33=torch.eye(3).repeat(series, 1, 1),
        study_S=torch.arange(series),
    ).to(device, torch.bfloat16)


def flops(lengths: list[int], dim: int, depth: int) -> float:
    """Forward and backward: three times 24·n·D² + 4·n²·D per block, and the stem."""
    patch = PATCH[0] * PATCH[1] * PATCH[2]
    tokens = [n + 5 for n in lengths]
    blocks = sum(depth * (24 * n * dim**2 + 4 * n * n * dim) for n in tokens)
    return 3.0 * (blocks + sum(2 * n * patch * dim for n in lengths))


def step(vit: VisionTransformer, views: PackedTokens) -> Callable[[], None]:
    def run() -> None:
        out = vit(views)
        (out.class_SD.float().sum() + out.tokens_TD.float().square().mean()).backward()
        vit.zero_grad(set_to_none=True)

    return run


def seconds(run: Callable[[], None], device: str, rounds: int) -> float:
    """Median of `rounds` after three that warm up."""
    taken = []
    for _ in range(3 + rounds):
        started = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[3:])


def measure(name: str, shape: tuple[int, int, int], lengths: list[int], device: str, rounds: int) -> None:
    dim, depth, heads = shape
    vit, views = build(dim, depth, heads, device), pack(lengths, device)
    card = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    peak = next((value for key, value in PEAK_TFLOPS.items() if key in card), None)
    for checkpointed in (False, True):
        vit.checkpoint_blocks = checkpointed
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        took = seconds(step(vit, views), device, rounds)
        rate = flops(lengths, dim, depth) / took / 1e12
        share = f"{100 * rate / peak:.1f} %" if peak else "unknown"
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if device == "cuda" else "–"
        what = "packed, checkpointed blocks" if checkpointed else "packed"
        print(f"| {name} | {what} | {sum(lengths) / took:,.0f} | {rate:.1f} | {share} | {memory} |")
    vit.checkpoint_blocks = False
    # As a padded batch computes: every sequence as long as the longest. Only real tokens count.
    took = seconds(step(vit, pack([max(lengths)] * len(lengths), device)), device, rounds)
    print(f"| {name} | padded | {sum(lengths) / took:,.0f} | – | – | – |")
    profile(name, vit, views, device)


def profile(name: str, vit: VisionTransformer, views: PackedTokens, device: str) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with record(activities=kinds) as seen:
        step(vit, views)()
    order = "self_cuda_time_total" if device == "cuda" else "self_cpu_time_total"
    print(f"\n{name}: where the time goes\n\n{seen.key_averages().table(sort_by=order, row_limit=12)}\n")


def main(words: list[str]) -> int:
    smoke = words == ["--smoke"]
    if not smoke and not torch.cuda.is_available():
        print("no CUDA device: this benchmark is for a GPU (--smoke shows that it runs)")
        return 1
    device, rounds = ("cpu", 1) if smoke else ("cuda", 10)
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}\n")
    print("| model | batch | tokens/s | TFLOP/s | MFU | peak memory |\n| --- | --- | --- | --- | --- | --- |")
    for name, shape in ({"toy": (96, 2, 2)} if smoke else SIZES).items():
        measure(name, shape, LENGTHS[: 4 if smoke else None], device, rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
