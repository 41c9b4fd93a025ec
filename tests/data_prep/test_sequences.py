"""Sequence recognition: by hand-made headers, by headers of published protocols, and by real series."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_prep.headers import HeaderReader, Scan, scan_of
from data_prep.sequences import recognise
from fm.data.sample import Acquisition, Agent, Contrast, DixonPart, FatSuppression, Plane, Role

from . import sequence_table
from .protocols import Fault, generate

BLANK = Scan(
    vendor="",
    field_strength_t=1.5,
    scanning_sequence=(),
    sequence_variant=(),
    scan_options=(),
    sequence_name="",
    image_type=("ORIGINAL", "PRIMARY"),
    repetition_time_ms=None,
    echo_time_ms=None,
    inversion_time_ms=None,
    flip_angle_deg=None,
    echo_train_length=None,
    b_value=None,
    agent="",
    agent_volume_ml=None,
    description="",
    protocol="",
    body_part="",
    slice_step_mm=5.0,
    frame_of_reference="",
    series_number=1,
)


def scan(
    sequence: str, tr: float, te: float, ti: float | None = None, flip: float | None = None, **more: object
) -> Scan:
    return replace(
        BLANK,
        scanning_sequence=tuple(sequence.split("/")),
        repetition_time_ms=tr,
        echo_time_ms=te,
        inversion_time_ms=ti,
        flip_angle_deg=flip,
        **more,
    )


@pytest.mark.parametrize(
    ("header", "contrast"),
    [
        (scan("SE", 500, 10), Contrast.T1W),
        (scan("RM", 700, 10), Contrast.T1W),
        (scan("SE", 4500, 100), Contrast.T2W),
        (scan("SE", 3000, 18), Contrast.PD),
        (scan("SE/IR", 9000, 120, 2500), Contrast.FLAIR),
        (scan("SE/IR", 9000, 100, 2200), Contrast.FLAIR),
        (scan("SE/IR", 4000, 40, 160), Contrast.STIR),
        (scan("SE/IR", 2000, 20, 860), Contrast.T1_FLAIR),
        (scan("GR/IR", 2300, 2.9, 900, 9), Contrast.T1W),
        (scan("IR", 1500, 6, 380), Contrast.T1W),
        (scan("GR", 8.2, 3.1, flip=18, sequence_variant=("SP",)), Contrast.T1W),
        (scan("GR", 150, 2.3, flip=70), Contrast.T1W),
        (scan("GR", 600, 20, flip=20), Contrast.SWI),
        (scan("GR", 4.2, 2.1, flip=50, sequence_variant=("SS",)), Contrast.BSSFP),
        (scan("EP/SE", 5000, 80, b_value=1000.0), Contrast.DWI),
        (scan("EP/SE", 5000, 80, b_value=0.0), Contrast.DWI),
        (scan("EP/SE", 5000, 80, image_type=("DERIVED", "PRIMARY", "DIFFUSION", "ADC")), Contrast.ADC),
        (scan("SE", 4500, 100, b_value=0.0), Contrast.T2W),
    ],
)
@pytest.mark.parametrize("words", ["", "T1 MPRAGE", "t2_tse", "FLAIR", "PD", "STIR"])
def test_physics_decides_whatever_the_words_say(header: Scan, contrast: Contrast, words: str) -> None:
    assert recognise(replace(header, description=words, protocol=words)).contrast.value is contrast


def test_repeated_gradient_echo_planar_volumes_are_bold() -> None:
    assert recognise(scan("EP/GR", 2000, 30), volumes=4).contrast.value is Contrast.BOLD
    assert recognise(scan("EP/GR", 2000, 30), volumes=1).contrast.value is not Contrast.BOLD


@pytest.mark.parametrize(
    ("words", "contrast"),
    [
        ("Ax T1 FSE", Contrast.T1W),
        ("t2_tse_tra", Contrast.T2W),
        ("FLAIR_longTR", Contrast.FLAIR),
        ("PDW_TSE", Contrast.PD),
        ("dADC", Contrast.ADC),
        ("DWI_SSh", Contrast.DWI),
        ("t2_flair", Contrast.FLAIR),
        ("anything else", Contrast.OTHER),
    ],
)
def test_words_decide_where_physics_is_silent(words: str, contrast: Contrast) -> None:
    assert recognise(replace(BLANK, description=words)).contrast.value is contrast


@pytest.mark.parametrize(
    ("agent", "words", "answer"),
    [
        ("", "", Agent.UNKNOWN),
        ("", "T1 +C", Agent.UNKNOWN),
        ("NONE", "", Agent.NO),
        ("no", "T1 post", Agent.NO),
        ("YES", "T1", Agent.UNKNOWN),
        ("Contrast", "T1", Agent.UNKNOWN),
        ("YES", "T1 post gd", Agent.YES),
        ("10ml multihance", "", Agent.YES),
        ("gadobutrol", "", Agent.YES),
    ],
)
def test_a_bare_contrast_tag_never_means_yes(agent: str, words: str, answer: Agent) -> None:
    assert recognise(replace(scan("SE", 500, 10), agent=agent, description=words)).agent.value is answer


def test_roles() -> None:
    assert recognise(replace(BLANK, description="T2_reg")).role.value is Role.REGISTERED
    assert recognise(replace(BLANK, description="T2 regional")).role.value is Role.ORIGINAL
    assert recognise(replace(BLANK, image_type=("DERIVED", "SECONDARY"))).role.value is Role.DERIVED
    assert recognise(replace(BLANK, vendor="Imaging Biometrics LLC")).role.value is Role.REGISTERED
    assert recognise(replace(BLANK, vendor="Neusoft Medical")).role.value is Role.ORIGINAL


@pytest.mark.parametrize(
    ("part", "words", "region"),
    [
        ("BRAIN", "", "head"),
        ("ABDOMEN", "", "abdomen"),
        ("", "Ax liver", "abdomen"),
        ("LSPINE", "", "spine"),
        ("", "", "unknown"),
    ],
)
def test_regions(part: str, words: str, region: str) -> None:
    assert recognise(replace(BLANK, body_part=part, description=words)).region.value == region


def test_a_tag_on_every_series_yields_to_words_that_deny_it() -> None:
    named = replace(scan("SE", 500, 10), agent="gadobutrol 7 ml", description="T1 pre")
    assert recognise(named).agent.value is Agent.YES
    assert recognise(named, agent_on_every_series=True).agent.value is Agent.UNKNOWN
    assert recognise(replace(named, description="T1"), agent_on_every_series=True).agent.value is Agent.YES


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"scan_options": ("FS",)}, FatSuppression.YES),
        ({"scan_options": ("FC", "WE")}, FatSuppression.YES),
        ({"scan_options": ("PFF",)}, FatSuppression.NO),
        ({"scan_options": ("PFF",), "description": "t2_tse_fs_tra"}, FatSuppression.NO),
        ({"description": "t2_tse_fs_tra"}, FatSuppression.YES),
        ({"description": "t2_tse_tra", "protocol": "t2_tse_fs"}, FatSuppression.NO),
        ({"scanning_sequence": ()}, FatSuppression.UNKNOWN),
        ({"image_type": ("DERIVED", "PRIMARY", "DIXON", "WATER")}, FatSuppression.YES),
        ({"image_type": ("DERIVED", "PRIMARY", "DIXON", "FAT")}, FatSuppression.NO),
        ({"scanning_sequence": ("SE", "IR"), "inversion_time_ms": 160.0}, FatSuppression.YES),
    ],
)
def test_fat_suppression(changes: dict[str, object], answer: FatSuppression) -> None:
    assert recognise(replace(scan("SE", 4500, 60), **changes)).fat_suppression.value is answer


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"acquisition_type": "3D", "sequence_name": "*tse2d1"}, Acquisition.THREE_D),
        ({"sequence_name": "*tse2d1_15"}, Acquisition.TWO_D),
        ({"technique": "efgre3d"}, Acquisition.THREE_D),
        ({"description": "t1_mprage_sag"}, Acquisition.THREE_D),
        ({"description": "T1"}, Acquisition.UNKNOWN),
    ],
)
def test_two_or_three_dimensions(changes: dict[str, object], answer: Acquisition) -> None:
    assert recognise(replace(BLANK, **changes)).acquisition.value is answer


@pytest.mark.parametrize(
    ("kinds", "words", "contrast", "part"),
    [
        (("DERIVED", "PRIMARY", "DIXON", "WATER"), "", Contrast.DIXON, DixonPart.WATER),
        (("ORIGINAL", "PRIMARY", "W"), "", Contrast.DIXON, DixonPart.WATER),
        (("ORIGINAL", "PRIMARY", "OTHER"), "FAT: Ax LAVA-Flex", Contrast.DIXON, DixonPart.FAT),
        (("ORIGINAL", "PRIMARY", "M", "OPP_PHASE"), "t1_fl2d_opp", Contrast.T1W, DixonPart.OPPOSED_PHASE),
        (("ORIGINAL", "PRIMARY", "M"), "T1 water", Contrast.T1W, None),
    ],
)
def test_dixon_parts(kinds: tuple[str, ...], words: str, contrast: Contrast, part: DixonPart | None) -> None:
    found = recognise(replace(scan("GR", 5.5, 2.4, flip=10), image_type=kinds, description=words))
    assert (found.contrast.value, found.dixon.value) == (contrast, part)


def test_a_dixon_image_of_a_turbo_spin_echo_keeps_its_weighting() -> None:
    found = recognise(replace(scan("SE", 4000, 90), image_type=("DERIVED", "PRIMARY", "DIXON", "WATER")))
    assert (found.contrast.value, found.dixon.value) == (Contrast.T2W, DixonPart.WATER)


@pytest.mark.parametrize(
    ("direction", "plane", "sure"),
    [((0, 0, 5), Plane.AXIAL, 1.0), ((3, 0, 0), Plane.SAGITTAL, 1.0), ((0, 3.5, 3.0), Plane.CORONAL, 0.76)],
)
def test_the_plane_is_that_of_the_slices(direction: tuple[float, ...], plane: Plane, sure: float) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(np.column_stack([direction, (1, 0, 0.1), (0.2, 1, 0)]))[0][:, [1, 2, 0]]
    found = recognise(BLANK, affine=affine).plane
    assert found is not None
    assert (found.value, found.confidence) == (plane, pytest.approx(sure, abs=0.01))


def test_agreeing_words_raise_the_confidence_and_others_lower_it() -> None:
    told = [recognise(replace(scan("SE", 4500, 100), description=words)).contrast for words in ("T1", "", "T2")]
    assert [answer.value for answer in told] == [Contrast.T2W] * 3
    assert told[0].confidence < told[1].confidence < told[2].confidence


def test_enhanced_files_tell_their_times_in_functional_groups(enhanced_header: str) -> None:
    found = HeaderReader().read(enhanced_header)
    assert not isinstance(found, str)
    assert found.scan.echo_time_ms == pytest.approx(3.2, abs=0.5)
    assert recognise(found.scan).contrast.value is Contrast.T1W


def test_published_protocols_with_faults() -> None:
    """At least 98 % of the headers that were generated before the rules were written."""
    hits, count, wrong = sequence_table.score()
    assert sum(count.values()) >= 200
    assert sum(hits.values()) / sum(count.values()) >= 0.98, [case.name for case in wrong]
    assert hits[Fault.NONE] == count[Fault.NONE]
    present = {case.protocol.contrast for case in generate()}
    assert present == set(Contrast) - {Contrast.OTHER}


def test_the_other_fields_of_published_protocols() -> None:
    """Agent, role and acquisition are never wrong (a bare agent tag is no yes); fat suppression in under 1 %."""
    wrong: Counter[str] = Counter()
    for case in generate():
        found = recognise(scan_of(case.header), case.protocol.volumes)
        protocol = case.protocol
        wrong["agent"] += found.agent.value is not (Agent.YES if protocol.agent else Agent.UNKNOWN)
        wrong["role"] += found.role.value is not (Role.DERIVED if "DERIVED" in protocol.image_type else Role.ORIGINAL)
        told = found.acquisition.value is not Acquisition.UNKNOWN
        wrong["acquisition"] += told and (found.acquisition.value is Acquisition.THREE_D) is not protocol.three_d
        told = found.fat_suppression.value is not FatSuppression.UNKNOWN
        wrong["fat"] += told and (found.fat_suppression.value is FatSuppression.YES) is not protocol.fat
    assert wrong["fat"] < 7
    assert wrong == Counter(agent=0, role=0, acquisition=0, fat=wrong["fat"])


@pytest.fixture(scope="module")
def real_series(mri_dev: Path) -> list[sequence_table.Series]:
    return list(sequence_table.development_series(mri_dev))


def test_real_series(real_series: list[sequence_table.Series]) -> None:
    assert len(real_series) == 10
    for series in real_series:
        truth, found = series.truth, series.answer(series.scan)
        assert sequence_table.right(truth, found), truth.folder
        assert found.plane is not None
        assert (found.role.value, found.plane.value) == (truth.role, truth.plane)
        assert found.acquisition.value is truth.acquisition
        assert found.region.value == truth.region or (truth.region == "shoulder" and found.region.value == "unknown")


def test_real_series_without_words_and_with_words_of_others(real_series: list[sequence_table.Series]) -> None:
    for series in real_series:
        blank = series.answer(series.blank)
        assert sequence_table.right(series.truth, blank), series.truth.folder
        assert blank.role.value is series.truth.role, series.truth.folder
        for other in real_series:
            swapped = series.answer(series.with_words_of(other))
            assert sequence_table.right(series.truth, swapped), (series.truth.folder, other.truth.folder)


def test_voxels_tell_real_heads_of_which_nothing_else_is_known(real_series: list[sequence_table.Series]) -> None:
    answers: dict[str, Contrast] = {}
    for series in real_series:
        if series.truth.region == "head":
            bare = replace(BLANK, body_part="HEAD")
            volume = series.volumes[-1]
            found = recognise(bare, 1, None, volume.affine, volume.values).contrast
            assert found.value is Contrast.OTHER or found.confidence <= 0.5
            answers[series.truth.folder] = found.value
    truths = {series.truth.folder: series.truth.contrast for series in real_series}
    said = {folder: answer for folder, answer in answers.items() if answer is not Contrast.OTHER}
    assert all(truths[folder] is answer for folder, answer in said.items()), said
    assert len(said) >= 5


def test_the_table_in_docs_is_what_the_command_writes(mri_dev: Path) -> None:
    assert sequence_table.TABLE.read_text() == sequence_table.table(mri_dev)
