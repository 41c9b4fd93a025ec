"""Contact sheets: the crops of a study on their volumes, and each view patch by patch as the network gets it."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from fm.data.index import Manifest
from fm.data.plan import keyed_rng
from fm.data.reader import SeriesSeen, StudyReader
from fm.data.sample import Plane, SeriesMeta, StudyMeta
from fm.data.shared import anchor_of, centre_of
from fm.data.views import Draw, SeriesView
from fm.data.volume import SeriesImage, from_sample

BLUE, GREEN, ORANGE, RED = "#0072b2", "#009e73", "#e69f00", "#d62728"
_AIR = np.array([[21, 32, 43], [59, 74, 90]], dtype=np.float64) / 255
_DROPPED = np.array([123, 79, 163], dtype=np.float64) / 255
_GLOBALS, _LOCALS = 2, 3
"""Views of a kind that a sheet has room for."""

Ints = NDArray[np.int64]
Image = NDArray[np.float64]


@dataclass(kw_only=True, slots=True)
class Sheet:
    """One study, ready for the page."""

    title: str
    words: str
    uri: str
    """WebP as a data: address."""
    image: bytes


@dataclass(kw_only=True, slots=True)
class Patches:
    """The patch lattice of one view, and what became of each patch."""

    count: tuple[int, int, int]
    """Patches along (D, H, W) that the crop touches."""
    tokens: Ints
    """(n, 3) places on the lattice of the tokens that the network gets, in their order."""
    dropped: Ints
    """(m, 3) those with tissue that were left out at random."""
    edge_mm: tuple[float, float, float]
    """Of a patch."""
    first: NDArray[np.float64]
    """(3,) edge of patch (0, 0, 0) in voxels of the series, from the middle of its first voxel."""
    step: NDArray[np.float64]
    """(3,) voxels of the series from a patch to the next."""

    def shown(self, slice_: int, view: SeriesView, sizes: tuple[int, int, int]) -> tuple[int, int]:
        """The layer of patches and the sample within it to show: those of a slice where tokens lie there, else the
        layer with most tokens and its sample with most tissue.
        """
        counts = np.bincount(self.tokens[:, 0], minlength=self.count[0])
        place = (slice_ - self.first[0]) / self.step[0]
        layer = math.floor(place)
        if 0 <= layer < self.count[0] and 2 * counts[layer] >= counts.max():
            return layer, int((place - layer) * sizes[0])
        layer = int(counts.argmax())
        mine = view.patches[self.tokens[:, 0] == layer].reshape(-1, *sizes)
        return layer, int((mine > -0.9).sum(axis=(0, 2, 3)).argmax())


def draw_sheets(reader: StudyReader, manifest: Manifest, studies: int, visit: int, most_series: int) -> Iterator[Sheet]:
    """Sheets of studies spread evenly over a manifest.

    Args:
        reader: draws the views, as in training.
        manifest: the studies to choose from.
        studies: sheets at most.
        visit: which visit of each study.
        most_series: series on a sheet at most.

    Raises:
        DatasetError, SampleError, CodecError: a study that cannot be read.
    """
    rows = np.unique(np.linspace(0, len(manifest) - 1, min(studies, len(manifest))).round().astype(int))
    for row in rows:
        meta = manifest.study(manifest.key(int(row)))
        rng = keyed_rng(reader.seed, visit, meta.key)
        seen = list(reader.see(meta, visit, manifest.read, rng))[:most_series]
        yield _sheet(reader, manifest, meta, seen, visit)


def patches_of(
    series: SeriesMeta, draw: Draw, cropped: SeriesView, view: SeriesView, touch: Draw,
    sizes: tuple[int, int, int], centre_mm: NDArray[np.float64],
) -> Patches:  # fmt: skip
    """Where the patches of a view lie.

    Args:
        series: what is seen.
        draw: where the crop lies.
        cropped: all tissue tokens of the crop.
        view: what is left of them.
        touch: what it was touched with.
        sizes: voxels of a patch, (D, H, W).
        centre_mm: origin of positions.
    """
    affine = np.asarray(series.affine, dtype=np.float64)
    to_voxel = np.linalg.inv(affine[:3, :3])
    step = np.abs(np.diag(to_voxel @ (cropped.step_mm.astype(np.float64).T * sizes)))

    def voxels(position_mm: NDArray[Any]) -> NDArray[np.float64]:
        return (position_mm.astype(np.float64) + centre_mm - affine[:3, 3]) @ to_voxel.T

    origin = voxels(cropped.position_mm[:1])[0]
    low, high = (np.asarray(edge, dtype=np.float64) for edge in series.foreground)
    start, stop = (low + np.asarray(share) * (high - low) - 0.5 for share in (draw.start, draw.stop))
    first = np.floor((start - origin) / step + 0.5 + 1e-3).astype(np.int64)
    last = np.ceil((stop - origin) / step - 0.5 - 1e-3).astype(np.int64)
    every = np.rint((voxels(cropped.position_mm) - origin) / step).astype(np.int64)
    first, last = np.minimum(first, every.min(axis=0)), np.maximum(last, every.max(axis=0))
    unmoved = view.position_mm - np.asarray(touch.offset_mm, dtype=np.float32)
    kept = np.rint((voxels(unmoved) - origin) / step).astype(np.int64) - first
    gone = {tuple(place) for place in (every - first).tolist()} - {tuple(place) for place in kept.tolist()}
    count = last - first + 1
    edge = np.linalg.norm(cropped.step_mm, axis=1) * sizes
    return Patches(
        count=(int(count[0]), int(count[1]), int(count[2])),
        tokens=kept,
        dropped=np.array(sorted(gone), dtype=np.int64).reshape(-1, 3),
        edge_mm=(float(edge[0]), float(edge[1]), float(edge[2])),
        first=origin + (first - 0.5) * step,
        step=step,
    )


def mosaic(patches: Patches, view: SeriesView, sizes: tuple[int, int, int], layer: int, sample: int) -> Image:
    """(H, W, 3) one sample of one layer of a view as the network gets it, 0–1; patches that are no tokens hatched or
    coloured.
    """
    _, high, wide = patches.count
    _, h, w = sizes
    rows, columns = np.indices((high * h, wide * w))
    stripe = max(2, h // 4)
    canvas = _AIR[((rows + columns) // stripe) % 2]
    for place in patches.dropped[patches.dropped[:, 0] == layer]:
        canvas[place[1] * h : (place[1] + 1) * h, place[2] * w : (place[2] + 1) * w] = _DROPPED
    for place, values in zip(patches.tokens, view.patches, strict=True):
        if place[0] == layer:
            grey = np.clip((values.reshape(sizes)[sample] + 1) / 2.2, 0, 1)
            canvas[place[1] * h : (place[1] + 1) * h, place[2] * w : (place[2] + 1) * w] = grey[:, :, None]
    return np.asarray(canvas)


def _sheet(reader: StudyReader, manifest: Manifest, meta: StudyMeta, seen: list[SeriesSeen], visit: int) -> Sheet:
    names = [name for kind, most in (("global", _GLOBALS), ("local", _LOCALS)) for name in _of(seen, kind)[:most]]
    width, height = 2.75, 3.05
    with matplotlib.rc_context({"font.size": 8.5, "font.family": "sans-serif"}):
        figure = Figure(figsize=(width * (2 + len(names)), height * len(seen)), layout="constrained", dpi=100)
        axes = figure.subplots(len(seen), 2 + len(names), squeeze=False)
        tokens = 0
        for row, one in zip(axes, seen, strict=True):
            image = from_sample(one.series, manifest.read(meta.key, f"{one.series.name}.b2"))
            centre = image.centre_mm
            if reader.data.cross_sequence:
                centre = centre_of(anchor_of(one.series, meta.series))
            draws, sizes = reader.draws(meta, one.series, visit), reader.lattice.patch_voxels
            found = {
                name: patches_of(one.series, draws[name], one.crops[name], one.views[name], one.touches[name],
                                 sizes, centre)
                for name in one.views
            }  # fmt: skip
            tokens += sum(len(patches.tokens) for patches in found.values())
            _draw_slice(row[0], one.series, image, draws)
            _draw_cut(row[1], one.series, image, draws, found["global_a"])
            for panel, name in zip(row[2:], names, strict=True):
                _draw_view(panel, one, name, found[name], sizes, _middle(one.series, draws, image)[0])
        sink = io.BytesIO()
        figure.savefig(sink, format="webp", pil_kwargs={"quality": 82, "method": 4})
    missing = sum(not valid for one in seen for valid in one.series.slice_valid)
    words = f"{len(seen)} of {len(meta.series)} series, {tokens} tokens in all views"
    words += f", missing slices: {missing}" if missing else ""
    return Sheet(
        title=f"Study {meta.key}, {meta.region}",
        words=words,
        uri="data:image/webp;base64," + base64.b64encode(sink.getvalue()).decode(),
        image=sink.getvalue(),
    )


def _of(seen: list[SeriesSeen], kind: str) -> list[str]:
    return [name for name in seen[0].views if name.startswith(kind)]


def _box(series: SeriesMeta, draw: Draw) -> NDArray[np.float64]:
    """(2, 3) edges of a crop in mm along the grid's own axes, from the edge of its first voxel."""
    low, high = (np.asarray(edge, dtype=np.float64) for edge in series.foreground)
    return np.array([low + np.asarray(share) * (high - low) for share in (draw.start, draw.stop)]) * series.spacing_mm


def _colour(name: str) -> str:
    return ORANGE if name.startswith("local") else BLUE if name == "global_a" else GREEN


def _middle(series: SeriesMeta, draws: dict[str, Draw], image: SeriesImage) -> tuple[int, int]:
    """The valid slice nearest the middle of the crops, and the row there: locals count most, they are small."""
    boxes = [_box(series, draw) for name, draw in draws.items() if name.startswith("local")]
    boxes = boxes or [_box(series, draw) for draw in draws.values()]
    d, h, _ = boxes[0].mean(axis=0) / series.spacing_mm
    valid = np.flatnonzero(series.slice_valid)
    return int(valid[np.abs(valid + 0.5 - d).argmin()]), int(np.clip(h, 0, image.stored.shape[1] - 1))


def _grey(image: SeriesImage, stored: NDArray[Any]) -> Image:
    values = stored * image.scale + image.offset
    return np.asarray(np.clip((values - image.low) / max(image.high - image.low, 1e-9), 0, 1) * (stored > 0))


def _draw_slice(panel: Any, series: SeriesMeta, image: SeriesImage, draws: dict[str, Draw]) -> None:
    depth, _ = _middle(series, draws, image)
    _, h, w = np.array(series.shape) * series.spacing_mm
    panel.imshow(_grey(image, image.stored[depth]), cmap="gray", origin="lower", extent=(0, w, 0, h), vmin=0, vmax=1)
    place = (depth + 0.5) * series.spacing_mm[0]
    for name, draw in draws.items():
        low, high = _box(series, draw)
        inside = low[0] <= place <= high[0]
        panel.add_patch(_outline(low[2], low[1], high[2], high[1], name, inside))
    side = "A" if series.plane is Plane.SAGITTAL else "R"
    panel.text(w * 0.985, h * 0.5, side, color="#ffd166", fontsize=9, va="center", ha="left", weight="bold")
    bar = 50.0 if w > 90 else 10.0
    panel.plot([w * 0.04, w * 0.04 + bar], [h * 0.03] * 2, color="#ffd166", linewidth=2.5)
    panel.text(w * 0.04 + bar / 2, h * 0.045, f"{bar:.0f} mm", color="#ffd166", fontsize=7.5, ha="center")
    d, h_mm, w_mm = series.spacing_mm
    shape = " × ".join(map(str, series.shape))
    words = f"{series.name}: {series.contrast} {series.plane}\n{shape} of {d:.3g} × {h_mm:.2g} × {w_mm:.2g} mm"
    _finish(panel, f"{words}\nslice {depth + 1}; dashed: crops beside it", (0, w), (0, h))


def _draw_cut(panel: Any, series: SeriesMeta, image: SeriesImage, draws: dict[str, Draw], patches: Patches) -> None:
    _, row = _middle(series, draws, image)
    d, _, w = np.array(series.shape) * series.spacing_mm
    cut = _grey(image, image.stored[:, row])
    panel.imshow(cut, cmap="gray", origin="lower", extent=(0, w, 0, d), vmin=0, vmax=1, interpolation="nearest")
    for number in np.flatnonzero(~np.asarray(series.slice_valid)):
        edge = number * series.spacing_mm[0]
        panel.axhspan(edge, edge + series.spacing_mm[0], color=RED, alpha=0.75, linewidth=0)
    edges = (patches.first + 0.5) * series.spacing_mm
    step = patches.step * series.spacing_mm
    at = math.floor(((row + 0.5) * series.spacing_mm[1] - edges[1]) / step[1])
    for place in patches.tokens[patches.tokens[:, 1] == at]:
        corner = (edges[2] + place[2] * step[2], edges[0] + place[0] * step[0])
        panel.add_patch(Rectangle(corner, step[2], step[0], fill=False, edgecolor="#7fc8f0", linewidth=0.5))
    for name, draw in draws.items():
        low, high = _box(series, draw)
        inside = low[1] <= (row + 0.5) * series.spacing_mm[1] <= high[1]
        panel.add_patch(_outline(low[2], low[0], high[2], high[0], name, inside))
    missing = sum(not valid for valid in series.slice_valid)
    words = f"cut through the slices\ntokens of global a in light blue\nmissing slices: {missing or 'none'}"
    _finish(panel, words, (0, w), (0, d))


def _draw_view(
    panel: Any, one: SeriesSeen, name: str, patches: Patches, sizes: tuple[int, int, int], slice_: int
) -> None:
    layer, sample = patches.shown(slice_, one.views[name], sizes)
    canvas = mosaic(patches, one.views[name], sizes, layer, sample)
    high, wide = patches.count[1] * patches.edge_mm[1], patches.count[2] * patches.edge_mm[2]
    panel.imshow(canvas, origin="lower", extent=(0, wide, 0, high), interpolation="nearest")
    for place in patches.tokens[patches.tokens[:, 0] == layer]:
        corner = (place[2] * patches.edge_mm[2], place[1] * patches.edge_mm[1])
        edge = Rectangle(corner, patches.edge_mm[2], patches.edge_mm[1], fill=False)
        edge.set(edgecolor=_colour(name), linewidth=0.35, alpha=0.8)
        panel.add_patch(edge)
    total = math.prod(patches.count)
    size_mm = " × ".join(f"{n * mm:.0f}" for n, mm in zip(patches.count, patches.edge_mm, strict=True))
    kept = f"{len(patches.tokens)} tokens of {total} patches"
    dropped = f", {len(patches.dropped)} left out" if len(patches.dropped) else ""
    title = f"{name.replace('_', ' ')}: {size_mm} mm\n{kept}{dropped}"
    title += f"\nlayer {layer + 1} of {patches.count[0]}, sample {sample + 1} of {sizes[0]}"
    _finish(panel, title, (0, wide), (0, high))
    for spine in panel.spines.values():
        spine.set(visible=True, color=_colour(name), linewidth=2)


def _outline(left: float, bottom: float, right: float, top: float, name: str, inside: bool) -> Rectangle:
    return Rectangle(
        (left, bottom), right - left, top - bottom, fill=False, edgecolor=_colour(name), linewidth=1.6 if inside else 1,
        linestyle="-" if inside else (0, (3, 2)),
    )  # fmt: skip


def _finish(panel: Any, title: str, across: tuple[float, float], up: tuple[float, float]) -> None:
    """Axes in mm; W grows toward the patient's right or front, which is drawn on the left."""
    panel.set_title(title, fontsize=8, loc="left")
    panel.set(xlim=across[::-1], ylim=up, aspect="equal")
    panel.set_xticks([])
    panel.set_yticks([])
    for spine in panel.spines.values():
        spine.set_visible(False)
