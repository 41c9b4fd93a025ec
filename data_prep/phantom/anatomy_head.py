"""Heads: the MNI152 brain in a skull, scalp and face, aged and warped.

The MNI152 T1, grey- and white-matter maps (Fonov et al., NeuroImage 54:313, 2011) ship with nilearn. They are
skull-stripped and mirror-symmetric; everything outside the brain and every asymmetry is made here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data_prep.phantom.tissue import Tissue
from data_prep.phantom.volume import (
    MASK_LABELS,
    Codes,
    Floats,
    Grid,
    TissueMap,
    ellipsoid,
    interpolator,
    nearest,
    smooth_noise,
    smoothstep,
    warped_coordinates,
)

LOW_MM, HIGH_MM = (-94.0, -124.0, -96.0), (94.0, 114.0, 98.0)
INTRACRANIAL = 255
"""Code of voxels that the soft maps describe."""
SINUS = {"left": 254, "right": 253}
"""Codes of the maxillary sinuses, air unless opacified."""


@dataclass(slots=True)
class HeadAtlas:
    """The canonical head on a lattice: codes and, inside the skull, shares and distances."""

    grid: Grid
    codes: Codes
    maps: Floats
    """(voxels, 4): shares of white and grey matter; signed distances in mm to the lateral and third ventricles, and to
    the CSF around the brain, negative inside them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadShape:
    """What distinguishes one head."""

    size: float
    """Linear size relative to the template."""
    proportion: tuple[float, float, float]
    """Further factors for width, length and height."""
    ventricle_growth_mm: float
    """By how much the ventricles' walls have receded."""
    sulcus_growth_mm: float
    """By how much the sulci have widened at each bank."""
    sinus: str
    """Opacified maxillary sinus: none, left or right (the patient's)."""


def build_atlas(step_mm: float) -> HeadAtlas:
    """The canonical head at a lattice step of 1 or 2 mm; about 3 s."""
    grid = Grid.over(LOW_MM, HIGH_MM, step_mm)
    t1, grey, white = _template(grid)
    brain = (grey + white > 0.3) | (t1 > 0.15)
    brain = ndimage.binary_fill_holes(ndimage.binary_closing(brain, iterations=round(4 / step_mm)))
    hull = _hull(brain, step_mm)
    outside = ndimage.distance_transform_edt(~hull, sampling=step_mm).astype(np.float32)
    parenchyma = grey + white
    ventricle = _ventricles(t1, brain, grid, step_mm)
    fluid = (parenchyma < 0.55) & ~ventricle
    return HeadAtlas(
        grid=grid,
        codes=_paint(grid, hull & ~_skull_base(brain, grid, step_mm), outside, step_mm),
        maps=np.stack(
            [
                m.reshape(-1)
                for m in (white, grey, _signed_distance(ventricle, step_mm), _signed_distance(fluid, step_mm))
            ],
            axis=1,
        ),
    )


def _template(grid: Grid) -> tuple[Floats, Floats, Floats]:
    """T1, grey and white matter of MNI152 on the lattice."""
    from nilearn import datasets

    maps = []
    for load in (datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template):
        image = load(resolution=1)
        values = np.asarray(image.get_fdata(dtype=np.float32))
        if grid.step_mm > 1:
            values = ndimage.gaussian_filter(values, 0.4 * grid.step_mm)
        to_index = np.linalg.inv(image.affine) @ grid.affine()
        maps.append(
            np.asarray(
                ndimage.affine_transform(values, to_index[:3, :3], to_index[:3, 3], output_shape=grid.shape, order=1),
                np.float32,
            )
        )
    return maps[0], maps[1], maps[2]


def _hull(brain: NDArray[np.bool_], step_mm: float) -> NDArray[np.bool_]:
    """The inside of the skull: the brain, closed over its fissures, smoothed and grown by 2 mm."""
    reach = 14.0
    grown = ndimage.distance_transform_edt(~brain, sampling=step_mm) <= reach
    closed = ndimage.distance_transform_edt(grown, sampling=step_mm) > reach - 2.5
    smooth = ndimage.gaussian_filter(closed.astype(np.float32), 2.5 / step_mm) > 0.5
    return np.asarray(smooth | brain)


def _skull_base(brain: NDArray[np.bool_], grid: Grid, step_mm: float) -> NDArray[np.bool_]:
    """Where the hull bridges the fossae below the brain, bone fills it."""
    far = ndimage.distance_transform_edt(~brain, sampling=step_mm) > 3.5
    return np.asarray(far & (grid.axes()[2] < -6))


def _ventricles(t1: Floats, brain: NDArray[np.bool_], grid: Grid, step_mm: float) -> NDArray[np.bool_]:
    """Lateral and third ventricles: dark in T1, deep, joined to the ventricles' bodies, apart from the cisterns."""
    x, y, z = grid.axes()
    lateral = np.abs(x)
    inner = ndimage.binary_erosion(brain, iterations=round(12 / step_mm))
    cistern = ((lateral < 13) & (y < -26) & (z < 16)) | (lateral < 2) | ((lateral < 5) & ((z > 24) | (y > 24)))
    dark = (t1 < 0.6) & inner & (lateral < 42) & (z > -22) & (z < 34) & (y > -62) & (y < 36) & ~cistern
    labels, _ = ndimage.label(dark)
    bodies = (np.abs(lateral - 10) < 8) & (np.abs(y) < 25) & (z > 8) & (z < 30)
    wanted = np.unique(labels[bodies & dark])
    third = (t1 < 0.6) & inner & (lateral < 4) & (y > -26) & (y < 4) & (z > -12) & (z < 8)
    return np.asarray((np.isin(labels, wanted[wanted > 0]) & (labels > 0)) | third)


def _signed_distance(inside: NDArray[np.bool_], step_mm: float) -> Floats:
    beyond = ndimage.distance_transform_edt(~inside, sampling=step_mm)
    within = ndimage.distance_transform_edt(inside, sampling=step_mm)
    distance = np.where(inside, step_mm / 2 - within, beyond - step_mm / 2)
    return np.asarray(ndimage.gaussian_filter(distance, 0.7 * 2 / step_mm), np.float32)


def _outline(grid: Grid, outside: Floats, step_mm: float) -> NDArray[np.bool_]:
    """The skin's inside: cranium, face with nose and chin, neck."""
    axes = grid.axes()
    _, y, z = axes
    face = ellipsoid(axes, (0, 38, -62), (60, 56, 62)) < 1
    nose = (ellipsoid(axes, (0, 97, -50), (13, 13, 17)) < 1) | (ellipsoid(axes, (0, 91, -34), (8, 10, 16)) < 1)
    cheeks = ellipsoid(axes, (0, 30, -70), (68, 42, 36)) < 1
    neck = (ellipsoid((axes[0], y, np.zeros_like(z)), (0, -34, 0), (60, 62, 1)) < 1) & (z < -44)
    ears = ellipsoid((np.abs(axes[0]), y, z), (80, -20, -38), (9, 15, 26)) < 1
    body = (outside < 14) | face | nose | cheeks | neck | ears
    blurred = ndimage.gaussian_filter(body.astype(np.float32), 3.5 / step_mm)
    return np.asarray((blurred > 0.5) | (outside < 13) | nose)


def _paint(grid: Grid, hull: NDArray[np.bool_], outside: Floats, step_mm: float) -> Codes:
    """Codes of the canonical head; later coats cover earlier ones."""
    axes = grid.axes()
    x, y, z = axes
    side = (np.abs(x), y, z)
    body = _outline(grid, outside, step_mm)
    # The lattice ends at the neck: the body goes on there.
    depth = ndimage.distance_transform_edt(np.pad(body, ((1, 1), (1, 1), (0, 1)))[1:-1, 1:-1, :-1], sampling=step_mm)
    codes = np.zeros(grid.shape, np.uint8)
    planes = smooth_noise(np.random.default_rng(152), grid.shape, 5.0 / step_mm)
    codes[body] = np.where(planes[body] > 0.55, Tissue.FAT, Tissue.MUSCLE)
    codes[body & (depth < 7.5)] = Tissue.FAT
    codes[body & (depth < 2.4)] = Tissue.SKIN
    base = (outside < 8) & (z > -78) & body
    codes[base] = Tissue.BONE
    codes[base & (outside > 3.0) & (outside < 6.5) & (z > -45)] = Tissue.MARROW
    jaw = (ellipsoid(side, (0, 55, -84), (34, 30, 12)) < 1) & ~hull
    codes[jaw & (depth > 8)] = Tissue.MARROW
    skull_free = outside > 4
    codes[(ellipsoid(side, (31, 52, -34), (20, 27, 18)) < 1) & skull_free & (depth > 5)] = Tissue.FAT
    codes[(ellipsoid(side, (32, 66, -34), (13, 13, 13)) < 1) & skull_free] = Tissue.VITREOUS
    codes[(ellipsoid(side, (32, 74, -34), (5, 3.2, 5)) < 1) & skull_free] = Tissue.MUSCLE
    bone_walls = (ellipsoid(side, (29, 52, -68), (18, 21, 18)) < 1) & skull_free & (depth > 6)
    codes[bone_walls] = Tissue.BONE
    codes[(ellipsoid(axes, (0, 56, -62), (9, 28, 20)) < 1) & skull_free & (depth > 4)] = Tissue.AIR
    codes[(ellipsoid(side, (5, 50, -66), (2.2, 24, 9)) < 1) & skull_free] = Tissue.MUCOSA
    codes[(np.abs(x) < 1.3) & (y > 32) & (y < 82) & (z < -44) & (z > -80) & skull_free] = Tissue.MUSCLE
    for centre, radii in (((8, 46, -40), (6, 18, 10)), ((6, 22, -46), (10, 11, 8)), ((9, 73, -16), (8, 4, 9))):
        codes[(ellipsoid(side, centre, radii) < 1) & (outside > 1.5) & (depth > 5)] = Tissue.AIR
    codes[(ellipsoid(axes, (0, 10, -88), (11, 9, 26)) < 1) & (outside > 6)] = Tissue.AIR
    cavity = (ellipsoid(side, (29, 52, -68), (16, 19, 16)) < 1) & skull_free & (depth > 8)
    codes[cavity & (x < 0)] = SINUS["left"]
    codes[cavity & (x > 0)] = SINUS["right"]
    vertebra = ellipsoid((x, y, np.zeros_like(z)), (0, -20, 0), (17, 12, 1)) < 1
    codes[vertebra & (z < -80)] = Tissue.MARROW
    canal = ellipsoid((x, y, np.zeros_like(z)), (0, -44, 0), (12, 11, 1))
    codes[(canal < 1) & (z < -66)] = INTRACRANIAL
    codes[hull] = INTRACRANIAL
    codes[(np.abs(x) < 3.5) & (outside > 0) & (outside < 4) & (z > -25) & ((y < 55) | (z > 40))] = Tissue.VESSEL
    return codes


def instantiate(atlas: HeadAtlas, shape: HeadShape, rng: np.random.Generator) -> TissueMap:
    """One patient's head on the atlas's lattice, in unposed anatomy coordinates."""
    grid = atlas.grid
    scale = tuple(shape.size * p for p in shape.proportion)
    warped = warped_coordinates(rng, grid, (scale[0], scale[1], scale[2]), amplitude_mm=1.6)
    index = np.stack([(w.reshape(-1) - o) / grid.step_mm for w, o in zip(warped, grid.origin, strict=True)])
    codes = nearest(atlas.codes, index)
    mixed = np.flatnonzero(codes == INTRACRANIAL)
    weights, ventricle = _matter(atlas, index[:, mixed], warped, mixed, shape)
    parts = np.zeros(codes.shape, np.uint8)
    parts[codes == Tissue.VITREOUS] = MASK_LABELS["eye"]
    for side, code in SINUS.items():
        cavity = codes == code
        full = shape.sinus == side
        codes[cavity] = Tissue.MUCOSA if full else Tissue.AIR
        if full:
            parts[cavity] = MASK_LABELS["sinus_opacification"]
    kind = weights.argmax(axis=0)
    parts[mixed] = np.where(kind == 0, MASK_LABELS["white_matter"], np.where(kind == 1, MASK_LABELS["grey_matter"], 0))
    parts[mixed[(kind == 2) & ventricle]] = MASK_LABELS["ventricle"]
    codes[mixed] = Tissue.CSF
    return TissueMap(grid, codes.reshape(grid.shape), mixed, weights, parts.reshape(grid.shape))


def _matter(
    atlas: HeadAtlas,
    index: Floats,
    warped: tuple[Floats, Floats, Floats],
    mixed: NDArray[np.intp],
    shape: HeadShape,
) -> tuple[Floats, NDArray[np.bool_]]:
    """(3, n) shares of white, grey and CSF inside the skull, and which voxels are ventricle."""
    sampled = interpolator(index[:, :, None], atlas.grid.shape) @ atlas.maps
    white, grey, ventricle_mm, sulcus_mm = sampled.T
    x, y, z = (w.reshape(-1)[mixed] for w in warped)
    # The template shows a rim of false grey matter around the ventricles, where only the ganglia lie below z = 18 mm.
    rim = (ventricle_mm < 5) & ((z > 18) | (y < -32))
    white = np.where(rim, white + grey, white)
    grey = np.where(rim, 0, grey)
    cerebrum = smoothstep((z + 30) / 12) * smoothstep((y + 78) / 12)
    half_mm = 0.6 * atlas.grid.step_mm
    inner = smoothstep((shape.ventricle_growth_mm * cerebrum - ventricle_mm) / (2 * half_mm) + 0.5)
    outer = smoothstep((shape.sulcus_growth_mm - sulcus_mm) / (2 * half_mm) + 0.5) * (ventricle_mm > 4)
    cord = (z < -66) & ((x / 6.5) ** 2 + ((y + 44) / 6) ** 2 < 1)
    matter = np.clip((1 - inner) * (1 - outer), 0, 1)
    total = np.maximum(white + grey, 0.15)
    share = np.clip(white + grey, 0, 1) / total
    white, grey = white * share * matter, grey * share * matter
    white = np.where(cord, 1.0, white)
    grey = np.where(cord, 0.0, grey)
    weights = np.stack([white, grey, np.clip(1 - white - grey, 0, 1)]).astype(np.float32)
    weights /= weights.sum(axis=0)
    return weights, inner > 0.5


LOBES = ("frontal", "temporal", "parietal", "occipital", "cerebellar")


def lobe_of(x: Floats, y: Floats, z: Floats) -> NDArray[np.int8]:
    """Index into :data:`LOBES` of canonical coordinates well inside a lobe of either hemisphere, -1 elsewhere."""
    lateral = np.abs(x)
    lobe = np.full(np.broadcast_shapes(x.shape, y.shape, z.shape), -1, np.int8)
    lobe[(y > 4) & (z > -8) & (lateral > 14)] = 0
    lobe[(y > -48) & (y < 2) & (z > -30) & (z < -2) & (lateral > 34)] = 1
    lobe[(y > -66) & (y < -26) & (z > 24) & (lateral > 14)] = 2
    lobe[(y < -72) & (z > -8) & (z < 34) & (lateral > 13)] = 3
    lobe[(y < -44) & (y > -84) & (z > -50) & (z < -26) & (lateral > 16)] = 4
    return lobe
