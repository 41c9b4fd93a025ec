"""Views: what the network sees of a series, as patches with positions in millimetres.

A view samples the series' own grid on a patch lattice: in-plane at the target spacing with an anti-aliasing triangle
filter, along the slice axis at the series' own spacing (thin slices averaged in whole numbers). Patches without tissue,
whether air, padding or missing slices, never become tokens. No view is ever mirrored: a report may name a side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from fm.batch import Late
from fm.config.data import DataConfig
from fm.data.plan import keyed_rng
from fm.data.resample import Filter, Span, filter_of, resample
from fm.data.sample import Agent, Contrast, Plane, SeriesMeta
from fm.data.scanner import Effects, apply_effects, draw_effects
from fm.data.touch import NOISE_BANK, noise_bank, touch
from fm.data.volume import SeriesImage, from_sample
from fm.grid import Box, apply_affine

Float = NDArray[np.float32]

_FLOOR = np.float32(0.1)
"""Normalised value of the darkest tissue; air is 0, so that dark tissue (CSF on FLAIR) and air differ."""
_CEILING = np.float32(1.5)
_CONTRASTS, _PLANES, _AGENTS = tuple(Contrast), tuple(Plane), tuple(Agent)


@dataclass(kw_only=True, slots=True)
class Lattice:
    """The grid of patches that views are sampled on."""

    patch_voxels: tuple[int, int, int]
    spacing_mm: float
    slice_spacing_mm: float
    min_tissue: float


@dataclass(kw_only=True, slots=True)
class Draw:
    """The random choices of one view; the defaults give the whole foreground box, unchanged."""

    start: tuple[float, float, float] = (0.0, 0.0, 0.0)
    stop: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Crop along (D, H, W) as shares of the foreground box."""
    shift: tuple[float, float, float] | None = None
    """Offset of the lattice in 0–1 patches; None centres the lattice on the crop."""
    spacing_factor: float = 1.0
    offset_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Added to every position."""
    gain: float = 1.0
    gamma: float = 1.0
    noise: float = 0.0
    keep: float = 1.0
    """Share of the tissue tokens that are kept."""
    effects: Effects | None = None
    """What the scanner did; None for a clean image."""


@dataclass(kw_only=True, slots=True)
class SeriesView:
    """Tokens of one view of one series; n ≥ 1 tokens of P voxels."""

    patches: Float
    """(n, P): −1 in air, about −0.8 to 1.2 in tissue; voxel order (d, h, w) within the patch."""
    position_mm: Float
    """(n, 3) RAS+ mm from the centre of the foreground box."""
    step_mm: Float
    """(3, 3) RAS+ mm from a voxel of the view to the next; row *a* is the step along axis *a* of (D, H, W)."""
    contrast: int
    plane: int
    agent: int
    late: Late | None = None
    """What the patches still lack; None where they are done."""


def lattice_of(data: DataConfig, patch_voxels: tuple[int, int, int]) -> Lattice:
    """The lattice that a configuration asks for."""
    return Lattice(
        patch_voxels=patch_voxels,
        spacing_mm=data.spacing_mm,
        slice_spacing_mm=data.slice_spacing_mm,
        min_tissue=data.min_tissue,
    )


def whole_view(image: SeriesImage, lattice: Lattice) -> SeriesView:
    """The whole foreground box without augmentation: the view to embed."""
    return view(image, lattice, Draw(), np.random.default_rng(0))


def draw_view(
    data: DataConfig, rng: np.random.Generator, *, local: bool, box_mm: NDArray[np.float64] | None = None
) -> Draw:
    """Random choices for a training view, global or local.

    Args:
        data: ranges to draw from.
        rng: what to draw with.
        local: whether it is a local view.
        box_mm: (3,) size of the foreground box along (D, H, W), for crops of a size in mm; by share where None.
    """
    smallest, keep = (data.local_extent, data.local_keep) if local else (data.global_extent, data.global_keep)
    extent = rng.uniform(smallest, smallest if local else 1.0, 3)
    edge_mm = data.local_mm if local else data.global_mm
    if edge_mm > 0 and box_mm is not None:
        extent = np.minimum(1, edge_mm / box_mm)
    start = rng.uniform(0, 1 - extent)
    stop = start + extent
    shift, offset = rng.uniform(0, 1, 3), rng.uniform(-1, 1, 3) * data.position_jitter_mm
    return Draw(
        start=(start[0], start[1], start[2]),
        stop=(stop[0], stop[1], stop[2]),
        shift=(shift[0], shift[1], shift[2]),
        spacing_factor=float(1 + rng.uniform(-1, 1) * data.spacing_jitter),
        offset_mm=(offset[0], offset[1], offset[2]),
        gain=float(1 + rng.uniform(-1, 1) * data.gain),
        gamma=float(math.exp(rng.uniform(-1, 1) * data.gamma)),
        noise=float(rng.uniform(0, data.noise)),
        keep=keep,
    )


def draw_views(
    data: DataConfig, series: SeriesMeta, names: Sequence[str], key: tuple[str | int, ...]
) -> dict[str, Draw]:
    """Random choices for all views of a series, global ones first; each has numbers of its own, by `key` and its name.

    Where the configuration asks for it, every further global crop overlaps the first, and local crops lie inside one
    of the global ones.
    """
    low, high = (np.asarray(edge, dtype=np.float64) for edge in series.foreground)
    box_mm = (high - low) * series.spacing_mm
    draws: dict[str, Draw] = {}
    wide: list[Draw] = []
    for name in names:
        local = name.startswith("local")
        draw = draw_view(data, keyed_rng(*key, name), local=local, box_mm=box_mm)
        if not local and wide and data.global_overlap > 0:
            draw = _overlapping(draw, wide[0], data.global_overlap, keyed_rng(*key, name, "place"))
        elif local and data.local_inside:
            rng = keyed_rng(*key, name, "place")
            draw = _inside(draw, wide[int(rng.integers(len(wide)))], rng)
        if not local:
            wide.append(draw)
        draws[name] = replace(draw, effects=draw_effects(data, (*key, name, "effects")))
    return draws


def _overlapping(draw: Draw, other: Draw, share: float, rng: np.random.Generator) -> Draw:
    """The same crop at a place where it shares at least `share` of the smaller one's length on each axis."""
    start, stop = [], []
    for a, b, c, d in zip(draw.start, draw.stop, other.start, other.stop, strict=True):
        length, least = b - a, share * min(b - a, d - c)
        low, high = max(0.0, c + least - length), min(1 - length, d - least)
        start.append(float(rng.uniform(low, max(low, high))))
        stop.append(start[-1] + length)
    return replace(draw, start=(start[0], start[1], start[2]), stop=(stop[0], stop[1], stop[2]))


def _inside(draw: Draw, other: Draw, rng: np.random.Generator) -> Draw:
    """The same crop, no longer than `other` on any axis, at a place inside it."""
    start, stop = [], []
    for a, b, c, d in zip(draw.start, draw.stop, other.start, other.stop, strict=True):
        length = min(b - a, d - c)
        start.append(float(rng.uniform(c, max(c, d - length))))
        stop.append(min(start[-1] + length, d))
    return replace(draw, start=(start[0], start[1], start[2]), stop=(stop[0], stop[1], stop[2]))


def reach(series: SeriesMeta, lattice: Lattice, draws: Sequence[Draw]) -> Box:
    """The box of voxels that `draws` read, within the foreground box."""
    start, stop = series.foreground
    size = tuple(b - a for a, b in zip(start, stop, strict=True))
    spans = [spans_of(series.spacing_mm, ((0, 0, 0), (size[0], size[1], size[2])), lattice, draw) for draw in draws]
    low = [min(span[axis].lo for span in spans) for axis in range(3)]
    high = [max(span[axis].hi for span in spans) for axis in range(3)]
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def image_of(series: SeriesMeta, payload: bytes | memoryview, lattice: Lattice, draws: Sequence[Draw]) -> SeriesImage:
    """The foreground box of a series as a grid, of which only what `draws` read is decompressed.

    Crops of it are, bit for bit, those of the whole.

    Raises:
        CodecError, SampleError: as :func:`fm.data.volume.from_sample`.
    """
    return from_sample(series, payload, series.foreground, reach(series, lattice, draws))


def view(image: SeriesImage, lattice: Lattice, draw: Draw, rng: np.random.Generator) -> SeriesView:
    """Sample one view.

    Args:
        image: the series, or a crop that holds all that the draw reaches.
        lattice: patch size and target spacing.
        draw: the random choices.
        rng: for noise and for which tokens are kept.
    """
    return retouch(crop(image, lattice, draw), draw, rng)


def crop(image: SeriesImage, lattice: Lattice, draw: Draw, *, late: bool = False) -> SeriesView:
    """All tissue tokens of a crop, by `draw`'s start, stop, shift, spacing, gamma and effects: what resampling costs.

    With `late`, a bias field that no other effect follows is only noted, for :func:`fm.data.touch.finish`.
    """
    spans = spans_of(image.spacing_mm, image.foreground, lattice, draw)
    window = tuple(slice(s.lo - start, s.hi - start) for s, start in zip(spans, image.start, strict=True))
    grid = resample(_looked_up(image.stored[window], _levels(image, draw)), _filters(image, spans))
    h, w, d = grid.shape[0], grid.shape[1], spans[0].patches
    patches = grid.reshape(h, w, d, -1)
    # Levels are doubled, so this is half the floor: a voxel at least half of which is tissue.
    tissue = (patches > _FLOOR).sum(axis=3, dtype=np.uint16).transpose(2, 0, 1) / patches.shape[3]
    later = late and draw.effects is not None and draw.effects.only_bias and patches.size < NOISE_BANK
    if draw.effects is not None and not later:
        whole = grid.transpose(2, 0, 3, 1, 4)
        flat = whole.reshape(len(whole), h * grid.shape[3], -1)
        in_plane = (spans[1].step * image.spacing_mm[1], spans[2].step * image.spacing_mm[2])
        apply_effects(flat, draw.effects, in_plane)
        whole[:] = flat.reshape(whole.shape)
    chosen = np.nonzero(tissue >= lattice.min_tissue)
    if chosen[0].size == 0:
        chosen = tuple(np.array([i]) for i in np.unravel_index(int(tissue.argmax()), tissue.shape))
    kept = patches[chosen[1], chosen[2], chosen[0]]
    kept -= 1
    index = np.stack([span.centres[i] for span, i in zip(spans, chosen, strict=True)], axis=1)
    position = apply_affine(image.affine, index) - image.centre_mm
    return SeriesView(
        patches=kept,
        position_mm=position.astype(np.float32),
        step_mm=np.stack([image.affine[:3, i] * span.step for i, span in enumerate(spans)]).astype(np.float32),
        contrast=_CONTRASTS.index(image.contrast),
        plane=_PLANES.index(image.plane),
        agent=_AGENTS.index(image.agent),
        late=_late_field(draw.effects, spans, np.stack(chosen, axis=1)) if later and draw.effects else None,
    )


def _late_field(effects: Effects, spans: list[Span], index: NDArray[np.int64]) -> Late:
    """The bias field for patches at (n, 3) places of the lattice."""
    d, h, w = (2 / max(1, span.patches * span.size - 1) for span in spans)
    sizes = (spans[0].size, spans[1].size, spans[2].size)
    corner = index * np.array(sizes) * (d, h, w) - 1
    return Late(field_444=effects.bias, corner_T3=corner, pitch=(d, h, w), patch_voxels=sizes)


def retouch(cropped: SeriesView, draw: Draw, rng: np.random.Generator, *, late: bool = False) -> SeriesView:
    """A crop with `draw`'s gain, noise, offset and dropped tokens: cheap beside drawing the crop; a copy.

    Args:
        cropped: from :func:`crop`; float16 patches will do.
        draw: the random choices.
        rng: for noise and for which tokens are kept.
        late: whether gain and noise are only noted, for :func:`fm.data.collate.pack` or :func:`fm.data.touch.finish`.
    """
    total = len(cropped.patches)
    chosen: NDArray[np.int64] | slice = slice(None)
    if draw.keep < 1:
        chosen = np.sort(rng.permutation(total)[: max(1, round(draw.keep * total))])
    patches = torch.from_numpy(cropped.patches[chosen])
    position = cropped.position_mm[chosen] + np.asarray(draw.offset_mm, dtype=np.float32)
    noise, place, numbers = 2 * draw.noise, 0, noise_bank()
    if noise > 0 and patches.numel() >= NOISE_BANK:
        numbers = torch.from_numpy(rng.standard_normal(patches.numel(), dtype=np.float32))
    elif noise > 0:
        place = int(rng.integers(NOISE_BANK - patches.numel()))
    if late and patches.numel() < NOISE_BANK:
        known = cropped.late or Late()
        todo = replace(known, gain=draw.gain, noise=noise, place=place)
        if known.field_444 is not None:
            todo = replace(todo, corner_T3=known.corner_T3[chosen])
        return replace(cropped, patches=patches.numpy(), position_mm=position, late=todo)
    after = touch(patches.float(), draw.gain, noise, numbers[place:])
    return replace(cropped, patches=after.numpy(), position_mm=position)


def spans_of(spacing: tuple[float, float, float], box: Box, lattice: Lattice, draw: Draw) -> list[Span]:
    """Where the lattice of a draw lies on a grid of `spacing` mm whose foreground is `box`, along (D, H, W)."""
    factor = max(1, round(lattice.slice_spacing_mm / spacing[0]))
    steps = (float(factor), *(lattice.spacing_mm * draw.spacing_factor / mm for mm in spacing[1:]))
    spans = []
    for i, (step, size) in enumerate(zip(steps, lattice.patch_voxels, strict=True)):
        low, high = box[0][i], box[1][i]
        start, stop = (low + share[i] * (high - low) for share in (draw.start, draw.stop))
        if i == 0:
            start, stop = math.floor(start), math.ceil(stop)
        patch = step * size
        count = max(1, math.ceil((stop - start) / patch - 1e-6))
        if draw.shift is None:
            origin = (start + stop - count * patch) / 2
        else:
            origin = start - draw.shift[i] * patch
            count = max(1, math.ceil((stop - origin) / patch - 1e-6))
        if i == 0:
            origin = math.floor(origin)
        samples, reach = count * size, step / 2 if i == 0 else max(1.0, step)
        first, last = (origin + (j + 0.5) * step - 0.5 for j in (0, samples - 1))
        lo = int(max(low, min(high - 1, math.ceil(first - reach))))
        hi = int(max(lo + 1, min(high, math.floor(last + reach) + 1)))
        spans.append(Span(patches=count, size=size, origin=origin, step=float(step), reach=reach, lo=lo, hi=hi))
    return spans


def _filters(image: SeriesImage, spans: list[Span]) -> tuple[Filter, Filter, Filter]:
    depth, height, width = spans
    valid = image.valid[depth.lo : depth.hi] if depth.step > 1 else None
    return filter_of(depth, box=True, valid=valid), filter_of(height, box=False), filter_of(width, box=False)


def _levels(image: SeriesImage, draw: Draw) -> Float:
    """What each stored integer becomes, less the −1 of air: normalised, then gamma; one look-up a voxel."""
    top = int(image.stored.max(initial=0))
    scanner = np.arange(top + 1, dtype=np.float32) * np.float32(image.scale) + np.float32(image.offset)
    share = (scanner - np.float32(image.low)) / np.float32(max(image.high - image.low, 1e-6))
    levels = np.clip(share, 0, _CEILING) ** np.float32(draw.gamma) + _FLOOR
    levels[0] = 0
    return np.asarray(2 * levels, dtype=np.float32)


def _looked_up(stored: NDArray[np.uint16 | np.uint8], levels: Float) -> Float:
    """``levels[stored]`` in three tenths of numpy's time."""
    rows = torch.from_numpy(stored.astype(np.int32).ravel())
    found: Float = torch.from_numpy(levels).index_select(0, rows).numpy()
    return found.reshape(stored.shape)
