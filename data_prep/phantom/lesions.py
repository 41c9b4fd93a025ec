"""Focal lesions: where they may lie, what they are made of, and how they are laid into a tissue map."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from data_prep.phantom.anatomy_head import LOBES, lobe_of
from data_prep.phantom.tissue import Tissue
from data_prep.phantom.volume import MASK_LABELS, Floats, Grid, Layer, TissueMap, smooth_noise, smoothstep

Layers = list[Layer]
Point = NDArray[np.float64]


class LesionKind(StrEnum):
    """Kinds of lesion, by region."""

    TUMOUR = "tumour"
    STROKE = "stroke"
    PLAQUES = "plaques"
    HAEMORRHAGE = "haemorrhage"
    METASTASIS = "metastasis"
    CYST = "cyst"


HEAD_KINDS = (LesionKind.TUMOUR, LesionKind.STROKE, LesionKind.PLAQUES, LesionKind.HAEMORRHAGE)
ABDOMEN_KINDS = (LesionKind.METASTASIS, LesionKind.CYST)

SITES = {
    LesionKind.TUMOUR: LOBES,
    LesionKind.STROKE: LOBES,
    LesionKind.PLAQUES: ("frontal", "parietal", "occipital"),
    LesionKind.HAEMORRHAGE: LOBES,
    LesionKind.METASTASIS: ("liver",),
    LesionKind.CYST: ("kidney",),
}
"""Lobes or organs that a kind of lesion may lie in."""

STRENGTH = {"easy": 1.0, "medium": 0.6, "hard": 0.33}
"""How far a lesion's tissue replaces the normal one, by grade."""

SIZE_MM = {
    "demo": {"easy": (32.0, 48.0), "medium": (20.0, 28.0), "hard": (17.0, 21.0)},
    "full": {"easy": (15.0, 45.0), "medium": (8.0, 15.0), "hard": (4.0, 9.0)},
}
"""Range of diameters by resolution and grade; the demo's thick voxels need larger ones."""

PLAQUE_SHARE = 0.62
"""The largest of a cluster of plaques, relative to other lesions of the grade."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LesionPlan:
    """A lesion as the population plan asks for it."""

    kind: LesionKind
    side: str
    """Side of the patient: left or right."""
    site: str
    """Lobe or organ."""
    grade: str
    """Easy, medium or hard."""
    size_mm: float


@dataclass(slots=True)
class PlacedLesion:
    """What became of a plan in one patient's anatomy."""

    centre_mm: tuple[float, float, float]
    """Anatomy coordinates of the seed point."""
    size_mm: float
    """Diameter drawn, after any enlargement that the coarsest series needed."""


def candidates(anatomy: TissueMap, plan: LesionPlan) -> NDArray[np.intp]:
    """Flat indices of voxels where the centre of a lesion may lie.

    Raises:
        RuntimeError: the anatomy leaves no place, which the plan's sites rule out.
    """
    x, y, z = anatomy.grid.axes()
    sign = 1.0 if plan.side == "right" else -1.0
    # The centroid of what is left after clipping must stay on its side through pose and warp.
    lateral = sign * x > max(15.0, 0.36 * plan.size_mm)
    if plan.site in LOBES:
        inside = np.isin(anatomy.parts, (MASK_LABELS["white_matter"],)) & (lobe_of(x, y, z) == LOBES.index(plan.site))
    elif plan.site == "liver":
        inside = _deep(anatomy, MASK_LABELS["liver"], 0.3 * plan.size_mm)
    else:
        inside = anatomy.parts == MASK_LABELS[f"kidney_{plan.side}"]
    found = np.flatnonzero(inside & lateral & (np.abs(z) < (62 if plan.site in LOBES else 66)))
    if not found.size:
        raise RuntimeError(f"no place for a {plan.kind} in the {plan.side} {plan.site}")
    return found


def _deep(anatomy: TissueMap, label: int, depth_mm: float) -> NDArray[np.bool_]:
    organ = anatomy.parts == label
    distance = ndimage.distance_transform_edt(organ, sampling=anatomy.grid.step_mm)
    return np.asarray(distance > min(depth_mm, 0.6 * float(distance.max())))


def place(anatomy: TissueMap, plan: LesionPlan, seed: list[int], scale: float = 1.0) -> PlacedLesion:
    """Lay a lesion into the anatomy, replacing any earlier one; the same seed gives the same place and shape.

    Args:
        anatomy: the patient's tissue map; its layers are replaced.
        plan: kind, side, site, grade, size.
        seed: of the place and the shape.
        scale: enlarges the lesion.
    """
    rng = np.random.default_rng(seed)
    spots = candidates(anatomy, plan)
    index = np.unravel_index(int(rng.choice(spots)), anatomy.grid.shape)
    centre = tuple(o + i * anatomy.grid.step_mm for o, i in zip(anatomy.grid.origin, index, strict=True))
    size = plan.size_mm * scale
    builders = {
        LesionKind.TUMOUR: _tumour,
        LesionKind.STROKE: _stroke,
        LesionKind.PLAQUES: _plaques,
        LesionKind.HAEMORRHAGE: _haemorrhage,
        LesionKind.METASTASIS: _metastasis,
        LesionKind.CYST: _cyst,
    }
    anatomy.layers = builders[plan.kind](anatomy, rng, np.asarray(centre), size, STRENGTH[plan.grade])
    return PlacedLesion((float(centre[0]), float(centre[1]), float(centre[2])), size)


@dataclass(slots=True)
class _Blob:
    """A rough ellipsoid in a box: `radius` is 1 on its surface."""

    box: tuple[slice, slice, slice]
    radius: Floats

    def within(self, fraction: float, edge: float) -> Floats:
        """Weight 1 inside `fraction` of the radius, falling to 0 over `edge` (in radii)."""
        return smoothstep((fraction - self.radius) / edge + 0.5)


def _blob(
    grid: Grid,
    rng: np.random.Generator,
    centre: NDArray[np.float64],
    size_mm: float,
    roughness: float,
    reach: float = 1.0,
    stretch: float = 1.15,
) -> _Blob:
    """A blob of mean diameter `size_mm`, its box wide enough for `reach` radii; axes differ by up to `stretch`."""
    axes = stretch ** rng.uniform(-1, 1, 3)
    radii = 0.5 * size_mm * axes / axes.prod() ** (1 / 3)
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    extent = 1.35 * reach * radii.max() + grid.step_mm
    box, places = [], []
    for middle, origin, count in zip(centre, grid.origin, grid.shape, strict=True):
        first = max(0, int((middle - extent - origin) / grid.step_mm))
        last = min(count, int((middle + extent - origin) / grid.step_mm) + 2)
        box.append(slice(first, last))
        places.append(origin + grid.step_mm * np.arange(first, last) - middle)
    offset = np.stack(np.meshgrid(*places, indexing="ij"), axis=-1).astype(np.float32)
    local = offset @ turn.astype(np.float32) / radii.astype(np.float32)
    radius = np.sqrt((local**2).sum(axis=-1))
    shape = (radius.shape[0], radius.shape[1], radius.shape[2])
    bumps = smooth_noise(rng, shape, max(size_mm / 6, 2.0) / grid.step_mm)
    return _Blob((box[0], box[1], box[2]), np.asarray(radius * (1 + roughness * np.clip(bumps, -2, 2)), np.float32))


def _share(anatomy: TissueMap, blob: _Blob, tissues: tuple[int, ...]) -> Floats:
    """Share of the voxels in the blob's box that the mask labels `tissues` cover, slightly blurred."""
    inside = np.isin(anatomy.parts[blob.box], tissues).astype(np.float32)
    return np.asarray(ndimage.gaussian_filter(inside, 0.5), np.float32)


def _inside_skull(anatomy: TissueMap, blob: _Blob) -> Floats:
    inside = np.zeros(anatomy.grid.shape, np.float32).reshape(-1)
    inside[anatomy.mixed] = 1.0
    return np.asarray(inside.reshape(anatomy.grid.shape)[blob.box])


def _brain(anatomy: TissueMap, blob: _Blob) -> Floats:
    return _share(anatomy, blob, (MASK_LABELS["white_matter"], MASK_LABELS["grey_matter"]))


def _in_brain(anatomy: TissueMap, spot: Point) -> bool:
    index = np.rint((spot - np.asarray(anatomy.grid.origin)) / anatomy.grid.step_mm).astype(int)
    if (index < 0).any() or (index >= anatomy.grid.shape).any():
        return False
    return int(anatomy.parts[tuple(index)]) in (MASK_LABELS["white_matter"], MASK_LABELS["grey_matter"])


def _edge(size_mm: float) -> float:
    """Width of a lesion's margin in radii: about 2 mm."""
    return min(0.5, 4.0 / size_mm)


def _oedema(anatomy: TissueMap, blob: _Blob, reach: float, strength: float) -> Layer:
    """Swelling around a lesion that spreads along white matter and stops at cortex and ventricle."""
    white = _share(anatomy, blob, (MASK_LABELS["white_matter"],))
    cover = np.asarray(blob.within(reach, 0.35) * np.clip(white, 0, 1), np.float32)
    return Layer(blob.box, Tissue.OEDEMA, cover, MASK_LABELS["oedema"], min(1.0, 1.15 * strength))


def _tumour(anatomy: TissueMap, rng: np.random.Generator, centre: Point, size: float, strength: float) -> Layers:
    """Solid mass with an enhancing rim, a necrotic core when large, and finger-like oedema."""
    reach = float(rng.uniform(1.45, 1.8))
    blob = _blob(anatomy.grid, rng, centre, size, roughness=0.13, reach=reach)
    skull, edge, lesion = _inside_skull(anatomy, blob), _edge(size), MASK_LABELS["lesion"]
    layers = [
        _oedema(anatomy, blob, reach, strength),
        Layer(blob.box, Tissue.TUMOUR_RIM, blob.within(1.0, edge) * skull, lesion, strength),
        Layer(blob.box, Tissue.TUMOUR, blob.within(0.78, edge) * skull, lesion, strength),
    ]
    if size > 24:
        core = blob.within(float(rng.uniform(0.42, 0.6)), edge)
        layers.append(Layer(blob.box, Tissue.NECROSIS, core * skull, lesion, strength))
    return layers


def _stroke(anatomy: TissueMap, rng: np.random.Generator, centre: Point, size: float, strength: float) -> Layers:
    """A territory of cortex and white matter with restricted diffusion."""
    outward = np.array([np.sign(centre[0]) * 0.25 * size, 0.0, 0.0])
    blob = _blob(anatomy.grid, rng, centre + outward, 1.2 * size, roughness=0.2, stretch=1.35)
    cover = np.asarray(blob.within(1.0, _edge(size)) * np.clip(_brain(anatomy, blob), 0, 1), np.float32)
    return [Layer(blob.box, Tissue.STROKE, cover, MASK_LABELS["lesion"], strength)]


def _plaques(anatomy: TissueMap, rng: np.random.Generator, centre: Point, size: float, strength: float) -> Layers:
    """One confluent plaque and several satellites in the white matter of one lobe."""
    layers = []
    for k in range(int(rng.integers(5, 9))):
        diameter = size if k == 0 else size * float(rng.uniform(0.35, 0.6))
        shift = np.zeros(3) if k == 0 else rng.normal(0, 0.95 * size, 3) * (0.55, 1.0, 0.7)
        spot = centre + shift
        if np.sign(spot[0]) != np.sign(centre[0]) or abs(spot[0]) < 9 or not _in_brain(anatomy, spot):
            continue
        blob = _blob(anatomy.grid, rng, spot, diameter, roughness=0.06, stretch=1.2)
        white = _share(anatomy, blob, (MASK_LABELS["white_matter"],)) if k else _brain(anatomy, blob)
        cover = np.asarray(blob.within(1.0, _edge(diameter)) * np.clip(white, 0, 1), np.float32)
        layers.append(Layer(blob.box, Tissue.PLAQUE, cover, MASK_LABELS["lesion"], strength))
    return layers


def _haemorrhage(anatomy: TissueMap, rng: np.random.Generator, centre: Point, size: float, strength: float) -> Layers:
    """Early subacute blood, bright on T1w and dark on T2w, in a ring of oedema."""
    reach = float(rng.uniform(1.25, 1.45))
    blob = _blob(anatomy.grid, rng, centre, size, roughness=0.1, reach=reach)
    cover = blob.within(1.0, _edge(size)) * _inside_skull(anatomy, blob)
    return [
        _oedema(anatomy, blob, reach, strength),
        Layer(blob.box, Tissue.HAEMATOMA, cover, MASK_LABELS["lesion"], strength),
    ]


def _metastasis(anatomy: TissueMap, rng: np.random.Generator, centre: Point, size: float, strength: float) -> Layers:
    """A round mass in the liver, often with a fluid centre."""
    blob = _blob(anatomy.grid, rng, centre, size, roughness=0.09)
    liver = np.clip(_share(anatomy, blob, (MASK_LABELS["liver"],)), 0, 1)
    edge, lesion = _edge(size), MASK_LABELS["lesion"]
    layers = [Layer(blob.box, Tissue.METASTASIS, blob.within(1.0, edge) * liver, lesion, strength)]
    if size > 24 and rng.random() < 0.6:
        layers.append(Layer(blob.box, Tissue.NECROSIS, blob.within(0.5, edge) * liver, lesion, strength))
    return layers


def _cyst(anatomy: TissueMap, rng: np.random.Generator, centre: Point, size: float, strength: float) -> Layers:
    """A smooth ball of fluid that may bulge out of the kidney."""
    outward = np.array([np.sign(centre[0]) * 0.18 * size, 0.0, 0.0])
    blob = _blob(anatomy.grid, rng, centre + outward, size, roughness=0.02, stretch=1.05)
    # Partial volume, not dilution, makes a small cyst faint: fluid stays fluid.
    cover = blob.within(1.0, _edge(size))
    return [Layer(blob.box, Tissue.CYST, cover, MASK_LABELS["lesion"], 0.4 + 0.6 * strength)]
