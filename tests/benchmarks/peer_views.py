"""The benchmark's views from a whole volume: by fm's code, by torch's operators, and by MONAI's transforms.

All three give the same tokens: the first bit for bit, the others to float rounding. Random choices and the noise that
is added come from fm for all: drawing them is not what is compared, and MONAI would draw fresh noise at a higher cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import ScaleIntensityRange, SpatialCrop, SpatialResample
from numpy.typing import NDArray
from torch import Tensor

from fm.config.data import DataConfig
from fm.data.plan import keyed_rng
from fm.data.resample import Span
from fm.data.sample import Agent, Contrast, Plane, SeriesMeta
from fm.data.views import Draw, Lattice, SeriesView, crop, draw_view, draw_views, reach, retouch, spans_of
from fm.data.volume import SeriesImage
from fm.grid import Box, apply_affine, box_slices


@dataclass(kw_only=True)
class FmViews:
    """Views of (study, visit) by fm's own code, for those who differ in how they come to the voxels alone."""

    metas: dict[str, SeriesMeta]
    data: DataConfig
    lattice: Lattice
    seed: int

    def view(self, key: str, visit: int, values: Any) -> SeriesView:
        """Crop and augment as fm's reader does; only the part of the volume that is read is converted."""
        meta, draw = self.metas[key], self.draw(key, visit)
        needed = reach(meta, self.lattice, [draw])
        stored = np.asarray(np.asarray(values)[box_slices(meta.foreground)][box_slices(needed)]).astype(np.uint16)
        return self.touched(key, visit, crop(self._image(meta, stored, needed[0]), self.lattice, draw))

    def draw(self, key: str, visit: int) -> Draw:
        meta = self.metas[key]
        return draw_views(self.data, meta, ["global_a"], (self.seed, "crop", visit, key, meta.name))["global_a"]

    def touched(self, key: str, visit: int, cropped: SeriesView) -> SeriesView:
        rng = keyed_rng(self.seed, visit, key)
        rng.permutation(1)  # of the study's one series
        return retouch(cropped, draw_view(self.data, rng, local=False), rng, late=True)  # done as the batch is laid

    def _image(self, meta: SeriesMeta, stored: NDArray[np.uint16], start: tuple[int, int, int]) -> SeriesImage:
        affine, centre = geometry(meta)
        return SeriesImage(
            stored=stored,
            scale=meta.intensity_scale,
            offset=meta.intensity_offset,
            affine=affine,
            spacing_mm=meta.spacing_mm,
            foreground=own_box(meta),
            centre_mm=centre,
            low=meta.intensity_low,
            high=meta.intensity_high,
            contrast=meta.contrast,
            plane=meta.plane,
            agent=meta.agent,
            start=start,
            slice_valid=np.ones(own_box(meta)[1][0], dtype=bool),
        )


def own_box(meta: SeriesMeta) -> Box:
    """The foreground as a grid of its own."""
    d, h, w = (int(b - a) for a, b in zip(*meta.foreground, strict=True))
    return (0, 0, 0), (d, h, w)


def geometry(meta: SeriesMeta) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Affine of the foreground's grid, and its centre in mm."""
    origin, stop = (np.array(edge) for edge in meta.foreground)
    affine = np.array(meta.affine, dtype=np.float64)
    centre = affine[:3, :3] @ ((origin + stop - 1) / 2) + affine[:3, 3]
    affine[:3, 3] += affine[:3, :3] @ origin
    return affine, centre


class TorchViews(FmViews):
    """The same in torch's operators, as one would write it: bilinear ``grid_sample`` of slices as channels."""

    def view(self, key: str, visit: int, values: Any) -> SeriesView:
        meta, draw = self.metas[key], self.draw(key, visit)
        spans = spans_of(meta.spacing_mm, own_box(meta), self.lattice, draw)
        origin = meta.foreground[0]
        box = tuple(zip(*((o + s.lo, o + s.hi) for o, s in zip(origin, spans, strict=True)), strict=True))
        part = self.cut(values, box)
        share = self.scaled(part * meta.intensity_scale + meta.intensity_offset, meta)
        grid = self.resampled(torch.where(part > 0, 2 * (share**draw.gamma + 0.1), 0.0), spans)
        d, h, w = ((s.patches, s.size) for s in spans)
        patches = grid.reshape(*d, *h, *w).permute(0, 2, 4, 1, 3, 5).flatten(3)
        kept = (patches > 0.1).float().mean(3) >= self.lattice.min_tissue
        index = np.stack([s.centres[i] for s, i in zip(spans, kept.nonzero().T.numpy(), strict=True)], axis=1)
        affine, centre = geometry(meta)
        cropped = SeriesView(
            patches=(patches[kept] - 1).numpy(),
            position_mm=(apply_affine(affine, index) - centre).astype(np.float32),
            step_mm=np.stack([affine[:3, i] * s.step for i, s in enumerate(spans)]).astype(np.float32),
            contrast=tuple(Contrast).index(meta.contrast),
            plane=tuple(Plane).index(meta.plane),
            agent=tuple(Agent).index(meta.agent),
        )
        return self.touched(key, visit, cropped)

    def cut(self, values: Any, box: Any) -> Tensor:
        """(D, H, W) float32 within the box of voxels."""
        return torch.from_numpy(np.asarray(np.asarray(values)[box_slices(box)]).astype(np.float32))

    def scaled(self, values: Tensor, meta: SeriesMeta) -> Tensor:
        return ((values - meta.intensity_low) / (meta.intensity_high - meta.intensity_low)).clamp(0, 1.5)

    def resampled(self, levels: Tensor, spans: list[Span]) -> Tensor:
        """The lattice's samples; slices keep their spacing in this benchmark, and the others do in-plane."""
        depth, height, width = spans
        before = depth.lo - round(depth.origin)
        after = depth.patches * depth.size - before - len(levels)
        y, x = (
            (2 * (s.origin + (torch.arange(s.patches * s.size) + 0.5) * s.step - s.lo)) / (s.hi - s.lo) - 1
            for s in (height, width)
        )
        grid = torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), dim=2)
        found = F.grid_sample(levels[None], grid[None], padding_mode="zeros", align_corners=False)[0]
        return F.pad(found, (0, 0, 0, 0, before, after))


class MonaiViews(TorchViews):
    """The same by MONAI's ``SpatialCrop``, ``ScaleIntensityRange`` and ``SpatialResample``, in float32."""

    def cut(self, values: Any, box: Any) -> Tensor:
        found = SpatialCrop(roi_start=box[0], roi_end=box[1])(torch.as_tensor(values)[None])[0]
        return (found.as_tensor() if isinstance(found, MetaTensor) else found).float()

    def scaled(self, values: Tensor, meta: SeriesMeta) -> Tensor:
        top = meta.intensity_low + 1.5 * (meta.intensity_high - meta.intensity_low)
        found: Any = ScaleIntensityRange(meta.intensity_low, top, 0.0, 1.5, clip=True)(values)
        return found.as_tensor() if isinstance(found, MetaTensor) else found

    def resampled(self, levels: Tensor, spans: list[Span]) -> Tensor:
        affine = torch.diag(torch.tensor([*(s.step for s in spans), 1.0], dtype=torch.float64))
        affine[:3, 3] = torch.tensor([s.origin + 0.5 * s.step - 0.5 - s.lo for s in spans], dtype=torch.float64)
        image = MetaTensor(levels[None], affine=torch.eye(4, dtype=torch.float64))
        found: Any = SpatialResample(mode="bilinear", padding_mode="zeros", dtype=torch.float32)(
            image, dst_affine=affine, spatial_size=[s.patches * s.size for s in spans]
        )
        return found.as_tensor()[0]
