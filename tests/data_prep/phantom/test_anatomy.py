from __future__ import annotations

import numpy as np
import pytest

from data_prep.phantom import anatomy_abdomen, anatomy_head
from data_prep.phantom.anatomy_head import HeadShape
from data_prep.phantom.lesions import HEAD_KINDS, SITES, LesionKind, LesionPlan, place
from data_prep.phantom.signal import Weighting, signals
from data_prep.phantom.sites import SITES as SCANNERS
from data_prep.phantom.sites import sequence
from data_prep.phantom.study import Atlases
from data_prep.phantom.tissue import Tissue
from data_prep.phantom.volume import MASK_LABELS, Grid, TissueMap, interpolator, nearest


def head(atlases: Atlases, seed: int = 3, **changes: object) -> TissueMap:
    values = {
        "size": 1.0,
        "proportion": (1.0, 1.0, 1.0),
        "ventricle_growth_mm": 0.0,
        "sulcus_growth_mm": 0.0,
        "sinus": "none",
    }
    assert atlases.head is not None
    return anatomy_head.instantiate(atlases.head, HeadShape(**{**values, **changes}), np.random.default_rng(seed))


def volume(anatomy: TissueMap, *names: str) -> float:
    return float(np.isin(anatomy.parts, [MASK_LABELS[name] for name in names]).sum())


@pytest.mark.parametrize("site", [SCANNERS[0], SCANNERS[1], SCANNERS[5]], ids=["3T", "1.5T", "0.064T"])
def test_rendered_contrast(atlases: Atlases, site) -> None:
    anatomy = head(atlases, ventricle_growth_mm=2.0)

    def means(weighting: Weighting) -> list[float]:
        image = anatomy.render(signals(sequence(site, weighting, True), site.field_t))
        names = ("white_matter", "grey_matter", "ventricle")
        return [float(image[anatomy.parts == MASK_LABELS[name]].mean()) for name in names]

    white, grey, csf = means(Weighting.T1W)
    assert white > grey > csf
    white, grey, csf = means(Weighting.T2W)
    assert white < grey < csf
    white, grey, csf = means(Weighting.FLAIR)
    assert csf < 0.6 * min(white, grey)


def test_ventricles_grow_and_brain_shrinks_with_atrophy(atlases: Atlases) -> None:
    none, mild, severe = (
        head(atlases, ventricle_growth_mm=v, sulcus_growth_mm=s) for v, s in ((0, 0), (3, 0.4), (5.6, 0.8))
    )
    millilitres = [volume(a, "ventricle") * 8e-3 for a in (none, mild, severe)]
    assert 10 < millilitres[0] < 40
    assert millilitres[1] > 1.8 * millilitres[0]
    assert millilitres[2] > 1.3 * millilitres[1]
    brains = [volume(a, "white_matter", "grey_matter") for a in (none, mild, severe)]
    assert brains[0] > brains[1] > brains[2]


def test_size_scales_the_brain_by_its_cube(atlases: Atlases) -> None:
    small, large = (volume(head(atlases, size=s), "white_matter", "grey_matter") for s in (0.95, 1.05))
    assert large / small == pytest.approx((1.05 / 0.95) ** 3, rel=0.03)


def test_sinus_is_on_the_patients_side(atlases: Atlases) -> None:
    for side, sign in (("left", -1), ("right", 1)):
        anatomy = head(atlases, sinus=side)
        x, _, _ = np.nonzero(anatomy.parts == MASK_LABELS["sinus_opacification"])
        assert sign * (anatomy.grid.origin[0] + anatomy.grid.step_mm * x.mean()) > 15
        t2w = anatomy.render(signals(sequence(SCANNERS[1], Weighting.T2W, True), 1.5))
        full = t2w[anatomy.parts == MASK_LABELS["sinus_opacification"]].mean()
        assert full > 2 * t2w[anatomy.parts == MASK_LABELS["white_matter"]].mean()
    assert not (head(atlases).parts == MASK_LABELS["sinus_opacification"]).any()


def test_no_head_mirrors_itself_and_there_is_a_face(atlases: Atlases) -> None:
    anatomy = head(atlases)
    mirrored = anatomy.codes[::-1]
    assert (mirrored != anatomy.codes).mean() > 0.02
    eyes = np.argwhere(anatomy.parts == MASK_LABELS["eye"]) * anatomy.grid.step_mm + anatomy.grid.origin
    assert eyes[:, 1].mean() > 45
    assert (eyes[:, 0] > 15).any() and (eyes[:, 0] < -15).any()
    fat = np.argwhere(anatomy.codes == Tissue.FAT) * anatomy.grid.step_mm + anatomy.grid.origin
    assert np.abs(fat[:, 0]).max() > 70


def test_organs_are_on_their_sides(atlases: Atlases) -> None:
    assert atlases.abdomen is not None
    shape = anatomy_abdomen.AbdomenShape(size=1.0, proportion=(1.0, 1.0, 1.0))
    anatomy = anatomy_abdomen.instantiate(atlases.abdomen, shape, np.random.default_rng(0))

    def middle(name: str) -> float:
        x = np.nonzero(anatomy.parts == MASK_LABELS[name])[0]
        return float(anatomy.grid.origin[0] + anatomy.grid.step_mm * x.mean())

    assert middle("liver") > 25 and middle("spleen") < -60
    assert middle("kidney_right") > 40 and middle("kidney_left") < -40


@pytest.mark.parametrize("kind", HEAD_KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_head_lesions_lie_where_planned(atlases: Atlases, kind: LesionKind, side: str) -> None:
    anatomy = head(atlases)
    for site in SITES[kind]:
        plan = LesionPlan(kind=kind, side=side, site=site, grade="easy", size_mm=30.0)
        place(anatomy, plan, [1, 2])
        cover = anatomy.coverage(MASK_LABELS["lesion"])
        assert cover is not None
        at = np.argwhere(cover >= 0.5) * anatomy.grid.step_mm + anatomy.grid.origin
        x, y, z = at.mean(axis=0)
        assert (x > 8) if side == "right" else (x < -8)
        assert {"frontal": y > -5, "occipital": y < -55, "parietal": z > 15, "temporal": z < 10, "cerebellar": z < -15}[
            site
        ]
        assert 0.15 < len(at) * 8 / (np.pi / 6 * 30**3) < 2.8
    again = [layer.cover.copy() for layer in anatomy.layers]
    place(anatomy, plan, [1, 2])
    assert all(np.array_equal(a, layer.cover) for a, layer in zip(again, anatomy.layers, strict=True))


def test_interpolation_is_exact_for_linear_functions() -> None:
    grid = Grid((0.0, 0.0, 0.0), (7, 8, 9), 1.0)
    x, y, z = grid.axes()
    values = (2 * x - 3 * y + 0.5 * z).astype(np.float32)
    index = np.random.default_rng(0).uniform(0, 5.9, (3, 50, 2)).astype(np.float32)
    sampled = interpolator(index, values.shape) @ values.reshape(-1)
    expected = (2 * index[0] - 3 * index[1] + 0.5 * index[2]).mean(axis=1)
    assert np.allclose(sampled, expected, atol=1e-4)
    outside = np.full((3, 1, 1), -2.0, np.float32)
    assert interpolator(outside, values.shape) @ (values.reshape(-1) + 9) == 0
    codes = np.arange(7 * 8 * 9, dtype=np.uint8).reshape(7, 8, 9)
    assert nearest(codes, np.array([[1.2], [2.6], [3.4]], np.float32)) == codes[1, 3, 3]
