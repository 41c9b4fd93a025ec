"""Abdomens from parametric organs: superellipsoids and tubes in a trunk of fat, muscle and bone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.phantom.tissue import Tissue
from data_prep.phantom.volume import (
    MASK_LABELS,
    Codes,
    Floats,
    Grid,
    TissueMap,
    ellipsoid,
    nearest,
    smooth_noise,
    warped_coordinates,
)

LOW_MM, HIGH_MM = (-186.0, -132.0, -114.0), (186.0, 132.0, 114.0)
KIDNEY = {"right": 254, "left": 253}
"""Codes of the kidneys' parenchyma, so that masks tell the sides."""


@dataclass(slots=True)
class AbdomenAtlas:
    """The canonical trunk on a lattice."""

    grid: Grid
    codes: Codes


@dataclass(frozen=True, slots=True, kw_only=True)
class AbdomenShape:
    """What distinguishes one trunk."""

    size: float
    """Linear size relative to the canonical trunk."""
    proportion: tuple[float, float, float]
    """Further factors for width, depth and height."""


def build_atlas(step_mm: float) -> AbdomenAtlas:
    """The canonical trunk at a lattice step in mm."""
    grid = Grid.over(LOW_MM, HIGH_MM, step_mm)
    axes = grid.axes()
    x, y, z = axes
    flat = (x, y, np.zeros_like(z))
    codes = np.zeros(grid.shape, np.uint8)
    trunk = (np.abs(x) / 168) ** 2.4 + (np.abs(y) / 116) ** 2.4 + np.zeros_like(z)
    codes[trunk < 1] = Tissue.SKIN
    codes[trunk < 0.965] = Tissue.FAT
    codes[(np.abs(x) / 148) ** 2.3 + (np.abs(y - 1) / 96) ** 2.3 + 0 * z < 1] = Tissue.MUSCLE
    inside = (np.abs(x) / 136) ** 2.2 + (np.abs(y - 4) / 84) ** 2.2 + 0 * z < 1
    codes[inside] = Tissue.FAT
    _skeleton(codes, axes, flat)
    side = (np.abs(x), y, z)
    lungs = (ellipsoid(side, (70, 2, 128), (62, 76, 62)) < 1) & inside
    liver = _liver(axes) & inside
    spleen = (ellipsoid(axes, (-102, -34, 38), (26, 38, 44)) < 1) & inside
    stomach = (ellipsoid(axes, (-62, 34, 40), (40, 32, 36)) < 1) & inside
    codes[stomach] = Tissue.BOWEL
    codes[stomach & (y > 50)] = Tissue.AIR
    codes[spleen] = Tissue.SPLEEN
    codes[liver] = Tissue.LIVER
    codes[ellipsoid(axes, (44, 46, -14), (13, 15, 24)) < 1] = Tissue.BILE
    for name, sign, height in (("right", 1.0, -26.0), ("left", -1.0, -16.0)):
        _kidney(codes, axes, name, sign, height)
    codes[(ellipsoid(flat, (-10, -30, 0), (10, 10, 1)) < 1)] = Tissue.VESSEL
    codes[(ellipsoid(flat, (20, -27, 0), (12, 9, 1)) < 1)] = Tissue.VESSEL
    vein = (np.abs(z - (10 + 0.25 * (x - 30))) < 7) & (np.abs(y - 4) < 7) & (x > -5) & (x < 70)
    codes[vein] = Tissue.VESSEL
    codes[lungs] = Tissue.AIR
    return AbdomenAtlas(grid, codes)


def _liver(axes: tuple[Floats, Floats, Floats]) -> NDArray[np.bool_]:
    """A large right lobe that tapers downwards and a flat left lobe across the midline."""
    right = ellipsoid(axes, (74, 4, 26), (62, 74, 74)) < 1
    left = ellipsoid(axes, (-8, 40, 46), (64, 40, 34)) < 1
    return np.asarray(right | left)


def _kidney(codes: Codes, axes: tuple[Floats, Floats, Floats], name: str, sign: float, height: float) -> None:
    """Parenchyma with a fatty sinus that opens towards the midline."""
    centre = (sign * 66, -42.0, height)
    bean = ellipsoid(axes, centre, (29, 27, 53)) < 1
    sinus = ellipsoid(axes, (sign * 52, -40.0, height), (17, 12, 28)) < 1
    codes[ellipsoid(axes, centre, (36, 34, 62)) < 1] = Tissue.FAT
    codes[bean] = KIDNEY[name]
    codes[bean & sinus] = Tissue.FAT
    codes[ellipsoid(axes, (sign * 50, -40.0, height), (9, 6, 13)) < 1] = Tissue.BILE


def _skeleton(codes: Codes, axes: tuple[Floats, Floats, Floats], flat: tuple[Floats, Floats, Floats]) -> None:
    """Spine with discs and canal, back muscles, psoas and ribs."""
    x, y, z = axes
    level = np.mod(z + 17, 34)
    codes[(ellipsoid((np.abs(x), y, np.zeros_like(z)), (38, -74, 0), (30, 22, 1)) < 1)] = Tissue.MUSCLE
    codes[(ellipsoid((np.abs(x), y, np.zeros_like(z)), (36, -48, 0), (15, 17, 1)) < 1) & (z < 10)] = Tissue.MUSCLE
    body = ellipsoid(flat, (0, -56, 0), (25, 19, 1)) + 0 * z
    codes[body < 1] = Tissue.BONE
    codes[(body < 0.85) & (level > 9)] = Tissue.MARROW
    codes[(body < 0.95) & (level <= 7)] = Tissue.DISC
    arch = (ellipsoid((np.abs(x), y, np.zeros_like(z)), (0, -84, 0), (20, 14, 1)) < 1) & (level > 6)
    codes[arch] = Tissue.MARROW
    codes[(ellipsoid(flat, (0, -82, 0), (10, 9, 1)) + 0 * z) < 1] = Tissue.CSF
    codes[(ellipsoid(flat, (0, -82, 0), (4.5, 4, 1)) + 0 * z) < 1] = Tissue.GREY
    wall = (np.abs(x) / 143) ** 2.3 + (np.abs(y - 2) / 91) ** 2.3
    ribs = (np.abs(wall - 1) < 0.07) & (np.mod(z - 0.35 * y, 26) < 8) & (z > -40)
    codes[ribs] = Tissue.MARROW


def instantiate(atlas: AbdomenAtlas, shape: AbdomenShape, rng: np.random.Generator) -> TissueMap:
    """One patient's trunk, in unposed anatomy coordinates; bowel loops are drawn anew for each."""
    grid = atlas.grid
    scale = tuple(shape.size * p for p in shape.proportion)
    warped = warped_coordinates(rng, grid, (scale[0], scale[1], scale[2]), amplitude_mm=3.0)
    index = np.stack([(w.reshape(-1) - o) / grid.step_mm for w, o in zip(warped, grid.origin, strict=True)])
    codes = nearest(atlas.codes, index).reshape(grid.shape)
    parts = np.zeros(grid.shape, np.uint8)
    for name, code in KIDNEY.items():
        kidney = codes == code
        parts[kidney] = MASK_LABELS[f"kidney_{name}"]
        codes[kidney] = Tissue.KIDNEY
    parts[codes == Tissue.LIVER] = MASK_LABELS["liver"]
    parts[codes == Tissue.SPLEEN] = MASK_LABELS["spleen"]
    _bowel(codes, warped, grid, rng)
    return TissueMap(grid, codes, np.zeros(0, np.intp), np.zeros((3, 0), np.float32), parts)


def _bowel(codes: Codes, warped: tuple[Floats, Floats, Floats], grid: Grid, rng: np.random.Generator) -> None:
    """Loops: the level sets of a random field in the visceral fat, with gas on top of some."""
    x, y, z = warped
    room = (codes == Tissue.FAT) & (((np.abs(x) / 118) ** 2 + ((y - 12) / 66) ** 2) < 1) & (y > -28) & (z < 62)
    loops = smooth_noise(rng, grid.shape, 9.0 / grid.step_mm)
    codes[room & (np.abs(loops) < 0.55)] = Tissue.BOWEL
    codes[room & (np.abs(loops) < 0.25) & (smooth_noise(rng, grid.shape, 12.0 / grid.step_mm) > 1.1)] = Tissue.AIR
