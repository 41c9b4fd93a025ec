"""Encoder forward + backward: this ViT on volumes at their own geometry, against what peers do with the same volumes.

Every comparison first shows that both sides compute the same function where they can; then they take turns, so that a
busy machine slows both. Nothing is asserted about time. Run by ``make bench``.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.networks.blocks import SABlock
from monai.networks.nets import ViT
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from fm.batch import PackedTokens, concat
from fm.data.collate import pack
from fm.data.views import Lattice, whole_view
from fm.data.volume import SeriesImage
from fm.models import FmConfig, FmModel
from fm.models.attention import Pack, packed_attention
from fm.models.init import load_image_weights

pytestmark = pytest.mark.full

PATCH, BOX = (8, 16, 16), (48, 224, 224)
DIM, DEPTH, HEADS, ROUNDS = 384, 3, 6, 5
LATTICE = Lattice(patch_voxels=PATCH, spacing_mm=1.0, slice_spacing_mm=4.0, min_tissue=0.05)
HISTOGRAM = (
    ((16, 256, 256), (6.0, 0.9, 0.9)),
    ((24, 320, 280), (5.0, 0.69, 0.69)),
    ((24, 512, 512), (6.0, 0.47, 0.47)),
    ((30, 384, 384), (4.4, 0.6, 0.6)),
    ((40, 256, 256), (3.3, 0.94, 0.94)),
    ((128, 256, 256), (1.4, 0.98, 0.98)),
    ((160, 256, 256), (1.1, 1.0, 1.0)),
    ((192, 256, 256), (0.9, 0.9, 0.9)),
)
"""(D, H, W) voxels and mm: five stacks of slices, three 3D acquisitions, as in clinical brain MRI."""
HEAD_MM = (170.0, 190.0, 150.0)
"""Diameters of the head along (D, H, W), an ellipsoid: what lies outside is air."""


def head(shape: tuple[int, int, int], spacing: tuple[float, float, float], seed: int) -> SeriesImage:
    """A noisy ellipsoid of tissue in a field of view; only its geometry matters here."""
    axes = [((np.arange(n) - (n - 1) / 2) * mm) for n, mm in zip(shape, spacing, strict=True)]
    squared = [(2 * axis / size) ** 2 for axis, size in zip(axes, HEAD_MM, strict=True)]
    inside = squared[0][:, None, None] + squared[1][:, None] + squared[2] < 1
    values = np.random.default_rng(seed).integers(200, 1000, shape, dtype=np.uint16)
    found = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    box = [(int(f[0]), int(f[-1]) + 1) for f in found]
    affine = np.diag([*spacing, 1.0])[:, [2, 1, 0, 3]]
    return SeriesImage(
        stored=np.where(inside, values, 0).astype(np.uint16),
        scale=1.0,
        offset=0.0,
        affine=affine,
        spacing_mm=spacing,
        foreground=(tuple(b[0] for b in box), tuple(b[1] for b in box)),  # type: ignore[arg-type]
        centre_mm=affine[:3, :3] @ ((np.array(shape) - 1) / 2),
        low=200.0,
        high=1000.0,
    )


def ours(**changes: Any) -> FmModel:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "patch_voxels": list(PATCH), "dim": DIM, "depth": DEPTH, "heads": HEADS, "text_dim": 16, "text_depth": 1,
        "text_heads": 2, "embed_dim": 16, "vocab_size": 20,
    }  # fmt: skip
    return FmModel(FmConfig(**settings | changes))


def monai_vit(img_size: tuple[int, int, int], patch: tuple[int, int, int]) -> ViT:
    """MONAI's ViT with flash attention in every block, which its own constructor does not offer, and our norms' eps."""
    torch.manual_seed(0)
    vit = ViT(1, img_size, patch, DIM, 4 * DIM, DEPTH, HEADS, classification=True, post_activation="")
    for block in vit.blocks:
        slow, block.attn = block.attn, SABlock(DIM, HEADS, use_flash_attention=True)
        block.attn.load_state_dict(slow.state_dict())
    for part in vit.modules():
        if isinstance(part, nn.LayerNorm):
            part.eps = 1e-6
    return vit


def monai_tokens(vit: ViT, volumes: Tensor) -> Tensor:
    """Normed class and patch tokens; its forward gives the class token to a classifier."""
    x = vit.patch_embedding(volumes)
    x = torch.cat([vit.cls_token.expand(len(x), -1, -1), x], 1)
    for block in vit.blocks:
        x = block(x)
    out: Tensor = vit.norm(x)
    return out


def flops(tokens: list[int], patch_voxels: int) -> float:
    """Forward and backward of DEPTH blocks (24·n·D² + 4·n²·D) and of the stem (2·n·P·D): three times the forward."""
    return 3.0 * sum(DEPTH * (24 * n * DIM**2 + 4 * n * n * DIM) + 2 * n * patch_voxels * DIM for n in tokens)


def backward(module: nn.Module, out: Tensor) -> None:
    out.square().mean().backward()
    module.zero_grad(set_to_none=True)


Rounds = dict[str, list[tuple[float, float]]]
"""Seconds of each round of each side: by the clock, and of the processor, which a busy machine changes less."""


def in_turns(sides: Mapping[str, Callable[[], None]]) -> Rounds:
    """One round of every side after the other; a first round warms up."""
    taken: Rounds = {name: [] for name in sides}
    for number in range(1 + ROUNDS):
        for name, run in sides.items():
            started, worked = time.perf_counter(), time.process_time()
            run()
            if number:
                taken[name].append((time.perf_counter() - started, time.process_time() - worked))
    return taken


def show(title: str, work: int, taken: Rounds, cost: dict[str, float]) -> None:
    """A table of rates; ratios are of the first side to each other one."""
    clock = {name: [wall for wall, _ in rounds] for name, rounds in taken.items()}
    worked = {name: statistics.median(cpu for _, cpu in rounds) for name, rounds in taken.items()}
    first, names = next(iter(taken)), ("torch", "monai", "transformers", "numpy")
    print(f"\n### {title}\n\n| side | volumes/s, median (range) | TFLOP | slower by | by processor time | FLOP ratio |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, wall in clock.items():
        rate = f"{work / statistics.median(wall):.3g} ({work / max(wall):.3g}–{work / min(wall):.3g})"
        slower = statistics.median(wall) / statistics.median(clock[first])
        by_work, ratio = worked[name] / worked[first], cost[name] / cost[first]
        print(f"| {name} | {rate} | {cost[name] / 1e12:.3f} | {slower:.2f} | {by_work:.2f} | {ratio:.2f} |")
    cores = f"{torch.get_num_threads()} of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"\n{platform.machine()}, {cores}, {ROUNDS} rounds, {DEPTH} blocks of {DIM}")
    print(", ".join(f"{name} {version(name)}" for name in names), flush=True)


@pytest.fixture(scope="module")
def singles() -> list[PackedTokens]:
    """The tissue tokens of each volume, as the product makes them."""
    views = [whole_view(head(shape, mm, i), LATTICE) for i, (shape, mm) in enumerate(HISTOGRAM)]
    return [pack([view], [i], int(np.prod(PATCH))) for i, view in enumerate(views)]


def padded_attention(real: list[int]) -> Callable[[Tensor, Tensor, Tensor, Pack], Tensor]:
    """Attention of a batch whose sequences all have the length of the longest, with a mask over keys."""

    def attend(q_THC: Tensor, k_THC: Tensor, v_THC: Tensor, pack: Pack) -> Tensor:
        longest = pack.lengths[0]
        q, k, v = (x.unflatten(0, (-1, longest)).transpose(1, 2) for x in (q_THC, k_THC, v_THC))
        mask = (torch.arange(longest) < torch.tensor(real).unsqueeze(1))[:, None, None]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(0, 1)

    return attend


def pad(single: PackedTokens, longest: int) -> PackedTokens:
    missing = longest - single.lengths[0]
    return replace(
        single,
        patches_TP=F.pad(single.patches_TP, (0, 0, 0, missing)),
        position_T3=F.pad(single.position_T3, (0, 0, 0, missing)),
        offsets_S1=torch.tensor([0, longest]),
    )


class Padded:
    """The same ViT on padded batches of the given volumes."""

    def __init__(self, model: FmModel, singles: list[PackedTokens], batches: list[list[int]]) -> None:
        self.vit, self.prefix = model.image, 1 + model.config.registers
        self.batches = []
        for rows in batches:
            lengths = [singles[i].lengths[0] for i in rows]
            views = concat([pad(singles[i], max(lengths)) for i in rows])
            self.batches.append((rows, lengths, views, padded_attention([n + self.prefix for n in lengths])))
        self.tokens = [max(lengths) + self.prefix for _, lengths, _, _ in self.batches for _ in lengths]

    def run(self) -> dict[int, Tensor]:
        """Tokens of each volume, padding left out, after a backward pass through each batch."""
        found = {}
        for rows, lengths, views, attend in self.batches:
            for block in self.vit.blocks:
                block.attention.attend = attend
            out = self.vit(views)
            parts = out.tokens_TD.split(views.lengths)
            found |= {i: part[:n].detach() for i, part, n in zip(rows, parts, lengths, strict=True)}
            backward(self.vit, torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)]))
        for block in self.vit.blocks:
            block.attention.attend = packed_attention
        return found


def test_a_histogram_of_real_shapes(singles: list[PackedTokens]) -> None:
    model, theirs = ours(), monai_vit(BOX, PATCH)
    packed = concat(singles)
    by_length = sorted(range(len(singles)), key=lambda i: singles[i].lengths[0])
    padded = Padded(model, singles, [list(range(len(singles)))])
    bucketed = Padded(model, singles, [by_length[i : i + 2] for i in range(0, len(singles), 2)])
    want = dict(enumerate(model.image(packed).tokens_TD.split(packed.lengths)))
    for side in (padded, bucketed):
        found = side.run()
        assert all((found[i] - want[i]).abs().max() < 1e-4 for i in want), "not the same function"
    boxes = torch.randn(2, 1, *BOX)  # resampled beforehand: only the encoder is timed

    def box() -> None:
        for _ in range(len(singles) // 2):
            backward(theirs, monai_tokens(theirs, boxes))

    taken = in_turns(
        {
            "ours, packed": lambda: backward(model.image, model.image(packed).tokens_TD),
            "MONAI ViT, flash, every volume in 48×224×224": box,
            "ours, padded to the longest": lambda: padded.run() and None,
            "ours, padded in buckets of two": lambda: bucketed.run() and None,
        }
    )
    prefix, voxels = 1 + model.config.registers, int(np.prod(PATCH))
    in_box = int(np.prod([size // p for size, p in zip(BOX, PATCH, strict=True)])) + 1
    tokens = ([n + prefix for n in packed.lengths], [in_box] * len(singles), padded.tokens, bucketed.tokens)
    cost = {name: flops(n, voxels) for name, n in zip(taken, tokens, strict=True)}
    print(f"\ntokens: {packed.lengths}, in the box {in_box - 1}")
    show("Encoder forward + backward, eight volumes", len(singles), taken, cost)


def test_one_shape_without_air_equals_dinov2_and_monai(tmp_path: Path) -> None:
    """1,024 patches; the three sides hold the same weights and give the same tokens."""
    sizes = {"hidden_size": DIM, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
    dino = Dinov2Model(Dinov2Config(**sizes, patch_size=14, image_size=448, attn_implementation="sdpa")).eval()
    monai = monai_vit((64, 128, 128), PATCH).eval()
    with torch.no_grad():
        dino.embeddings.position_embeddings.zero_()
        monai.patch_embedding.position_embeddings.zero_()
    dino.save_pretrained(tmp_path)
    save_file(monai.state_dict(), tmp_path / "monai.safetensors")
    picture, volume = torch.randn(1, 1, 448, 448), torch.randn(1, 1, 64, 128, 128)
    flat = picture[0].unfold(1, 14, 14).unfold(2, 14, 14).reshape(1024, 196)
    cubes = volume[0, 0].unfold(0, 8, 8).unfold(1, 16, 16).unfold(2, 16, 16).reshape(512, -1)
    colour = picture.expand(1, 3, 448, 448)
    for name, theirs, patch, patches, file, tokens in (
        ("Dinov2Model, SDPA", dino, [1, 14, 14], flat, "model", lambda: dino(colour).last_hidden_state[0]),
        ("MONAI ViT, flash", monai, list(PATCH), cubes, "monai", lambda: monai_tokens(monai, volume)[0]),
    ):
        scale = 1.0 if theirs is dino else 0.0  # MONAI's blocks have none
        model = ours(patch_voxels=patch, registers=0, qk_norm=False, absolute_position=False, layer_scale=scale)
        load_image_weights(model, str(tmp_path / f"{file}.safetensors"))
        with torch.no_grad():
            for p in model.image.condition.parameters():
                p.zero_()
        zero = torch.zeros(1, dtype=torch.int64)
        views = PackedTokens(
            patches_TP=patches,
            position_T3=torch.zeros(len(patches), 3),
            offsets_S1=torch.tensor([0, len(patches)]),
            contrast_S=zero,
            plane_S=zero,
            agent_S=zero,
            step_S33=torch.eye(3)[None],
            study_S=zero,
        )

        def packed(model: FmModel = model, views: PackedTokens = views) -> Tensor:
            out = model.image(views)
            return torch.cat([out.class_SD, out.tokens_TD])

        with torch.no_grad():
            assert (packed() - tokens()).abs().max() < 1e-3, "not the same function"
        taken = in_turns(
            {
                "ours, packed": lambda: backward(model.image, packed()),  # noqa: B023 - called in this round
                name: lambda: backward(theirs, tokens()),  # noqa: B023
            }
        )
        colours = 3 if theirs is dino else 1
        cost = {
            "ours, packed": flops([len(patches) + 1], patches.shape[1]),
            name: flops([len(patches) + 1], colours * patches.shape[1]),
        }
        show(f"One volume of {len(patches)} patches, no air", 1, taken, cost)
