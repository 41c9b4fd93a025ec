from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.headers import Header, HeaderReader, Scan
from data_prep.sequences import recognise, region_of
from fm.data.sample import Agent, Contrast, Role

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
    assert recognise(replace(header, description=words, protocol=words)).contrast is contrast


def test_repeated_gradient_echo_planar_volumes_are_bold() -> None:
    assert recognise(scan("EP/GR", 2000, 30), volumes=4).contrast is Contrast.BOLD
    assert recognise(scan("EP/GR", 2000, 30), volumes=1).contrast is not Contrast.BOLD


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
    assert recognise(replace(BLANK, description=words)).contrast is contrast


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
    assert recognise(replace(scan("SE", 500, 10), agent=agent, description=words)).agent is answer


def test_roles() -> None:
    assert recognise(replace(BLANK, description="T2_reg")).role is Role.REGISTERED
    assert recognise(replace(BLANK, description="T2 regional")).role is Role.ORIGINAL
    assert recognise(replace(BLANK, image_type=("DERIVED", "SECONDARY"))).role is Role.DERIVED


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
    assert region_of(replace(BLANK, body_part=part, description=words)) == region


@pytest.mark.parametrize("blank", [False, True])
@pytest.mark.parametrize(
    ("folder", "volumes", "contrast", "agent", "role"),
    [
        ("PGBM-003/T1pre", 1, Contrast.T1W, Agent.UNKNOWN, Role.REGISTERED),
        ("PGBM-003/T1post", 1, Contrast.T1W, Agent.YES, Role.ORIGINAL),
        ("PGBM-003/T2", 1, Contrast.T2W, Agent.UNKNOWN, Role.REGISTERED),
        ("PGBM-003/FLAIR", 1, Contrast.FLAIR, Agent.UNKNOWN, Role.REGISTERED),
        ("PGBM-006/T1post", 1, Contrast.T1W, Agent.YES, Role.ORIGINAL),
        ("PGBM-006/T2", 1, Contrast.T2W, Agent.UNKNOWN, Role.REGISTERED),
        ("PGBM-006/FLAIR", 1, Contrast.FLAIR, Agent.UNKNOWN, Role.REGISTERED),
        ("UIH-uMR770/DWI", 17, Contrast.DWI, Agent.UNKNOWN, Role.ORIGINAL),
        ("NIH-GE-MR750/EPI_BOLD", 4, Contrast.BOLD, Agent.UNKNOWN, Role.ORIGINAL),
        ("icometrix-Hitachi/shoulder_PD", 1, Contrast.PD, Agent.UNKNOWN, Role.ORIGINAL),
    ],
)
def test_real_series_with_and_without_their_words(
    mri_dev: Path, folder: str, volumes: int, contrast: Contrast, agent: Agent, role: Role, blank: bool
) -> None:
    header = HeaderReader().read(str(next(iter(sorted((mri_dev / "dicom" / folder).iterdir())))))
    assert isinstance(header, Header)
    seen = replace(header.scan, description="", protocol="", sequence_name="") if blank else header.scan
    found = recognise(seen, volumes)
    assert (found.contrast, found.agent) == (contrast, agent)
    if not blank:
        assert found.role is role
