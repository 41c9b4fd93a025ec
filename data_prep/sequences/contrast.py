"""The contrast of a series: image type, pulse sequence and times first, words where they leave it open, voxels last.

Descriptions are typed by hand and often belong to another series, so they decide only what physics cannot. Thresholds
follow the usual clinical ranges (McRobbie et al., *MRI from Picture to Proton*, 3rd ed., ch. 3 and 12; Westbrook,
*Handbook of MRI Technique*, 5th ed., table 2.1) and hold from 0.06 to 7 T, since times are chosen for contrast, not for
the field.
"""

from __future__ import annotations

import re
from dataclasses import replace

from data_prep.headers import Scan
from data_prep.sequences.answer import Answer
from data_prep.sequences.pulse import Family, family_of, pulse_contrast, usual_contrast
from data_prep.sequences.words import contrast_word
from fm.data.sample import Agent, Contrast

REPEATED = 10
"""Volumes from which a series without diffusion weighting is a time course."""
_DIXON_KINDS = {"DIXON", "WATER", "FAT", "W", "F"}
_ACQUISITION_CONTRASTS = {
    "T1": Contrast.T1W,
    "T2": Contrast.T2W,
    "T2_STAR": Contrast.SWI,
    "PROTON_DENSITY": Contrast.PD,
    "DIFFUSION": Contrast.DWI,
    "FLUID_ATTENUATED": Contrast.FLAIR,
    "STIR": Contrast.STIR,
    "PERFUSION": Contrast.PERFUSION,
}


def contrast_of(scan: Scan, volumes: int, b_value: float | None, agent: Agent) -> Answer[Contrast]:
    """Contrast of a series; OTHER with confidence 0 where neither physics nor words tell.

    Args:
        scan: the header.
        volumes: 3D volumes of the series.
        b_value: diffusion weighting in s/mm², None where unknown.
        agent: whether contrast agent was given: it parts perfusion from BOLD.
    """
    family = family_of(scan)
    found = (
        _by_image_type(scan, family)
        or _by_diffusion(scan, b_value)
        or _by_pulse(scan)
        or _by_times(scan, family, volumes, agent)
        or _by_acquisition_contrast(scan)
    )
    word = contrast_word(scan)
    if found is not None:
        if word is not None:
            change = 0.05 if word[0] is found.value else -0.15
            found = replace(found, confidence=round(min(found.confidence + change, 0.99), 2))
        return found
    if word is not None:
        confidence, rule = ((0.7, "words of the description"), (0.5, "words of the protocol"))[word[1]]
        return Answer(value=word[0], confidence=confidence, rule=rule)
    usual = usual_contrast(scan)
    if usual is not None:
        return Answer(value=usual, confidence=0.6, rule="pulse sequence, times missing")
    return Answer(value=Contrast.OTHER, confidence=0.0, rule="nothing told")


def _answer(value: Contrast, confidence: float, rule: str) -> Answer[Contrast]:
    return Answer(value=value, confidence=confidence, rule=rule)


def _by_image_type(scan: Scan, family: Family) -> Answer[Contrast] | None:
    kinds = {kind.upper() for kind in scan.image_type}
    word = contrast_word(scan)
    if kinds & {"ADC", "DADC", "APPARENT DIFFUSION COEFFICIENT"}:
        return _answer(Contrast.ADC, 0.98, "image type adc")
    if "DERIVED" in kinds and word is not None and word[0] is Contrast.ADC:
        return _answer(Contrast.ADC, 0.85, "derived, words adc")
    if kinds & {"CBF", "CBV", "MTT", "TTP", "RELCBF", "RELCBV", "ASL", "PERFUSION"}:
        return _answer(Contrast.PERFUSION, 0.95, "image type perfusion")
    if "SWI" in kinds:
        return _answer(Contrast.SWI, 0.95, "image type swi")
    if kinds & _DIXON_KINDS and not family.spin:
        return _answer(Contrast.DIXON, 0.95, "image type dixon")
    return None


def _by_diffusion(scan: Scan, b_value: float | None) -> Answer[Contrast] | None:
    kinds = {kind.upper() for kind in scan.image_type}
    echo_planar = "EP" in {word.upper() for word in scan.scanning_sequence}
    weighted = b_value is not None and (b_value > 0 or echo_planar)
    if weighted or kinds & {"DIFFUSION", "TRACEW"} or re.search(r"ep_b|dti|diff", scan.sequence_name):
        return _answer(Contrast.DWI, 0.98, "diffusion weighting")
    return None


def _by_pulse(scan: Scan) -> Answer[Contrast] | None:
    contrast = pulse_contrast(scan)
    if contrast is not None:
        return _answer(contrast, 0.95, "pulse sequence")
    return None


def _by_acquisition_contrast(scan: Scan) -> Answer[Contrast] | None:
    contrast = _ACQUISITION_CONTRASTS.get(scan.acquisition_contrast.upper())
    return None if contrast is None else _answer(contrast, 0.85, "acquisition contrast")


def _by_times(scan: Scan, family: Family, volumes: int, agent: Agent) -> Answer[Contrast] | None:
    """Echo, repetition and inversion time and flip angle; None where they are absent or fit several contrasts."""
    te, tr = scan.echo_time_ms, scan.repetition_time_ms
    if te is None or tr is None:
        return None
    found = _time_course(family, te, tr, volumes, agent)
    if found is None and family.inversion:
        found = _inversion(scan, te, tr, family.gradient)
    if found is None:
        if family.gradient and not family.planar:
            found = _gradient_echo(scan, te, tr, agent)
        elif not family.planar and not (_needs_tags(scan) and not family.tagged):
            found = _spin_echo(scan, te, tr)
    return found if found is None or family.tagged else replace(found, confidence=found.confidence - 0.1)


def _time_course(family: Family, te: float, tr: float, volumes: int, agent: Agent) -> Answer[Contrast] | None:
    """Many volumes of a T2*-weighted fast sequence: BOLD, or the first pass of an agent."""
    planar = family.planar and not family.spin
    if not (planar and volumes >= 3) and not (not family.tagged and volumes >= REPEATED and 15 <= te <= 60):
        return None
    if tr < 400:
        return None
    if volumes >= REPEATED and agent is Agent.YES:
        return _answer(Contrast.PERFUSION, 0.9, "gradient epi, repeated, agent")
    return _answer(Contrast.BOLD, 0.9, "gradient epi, repeated")


def _inversion(scan: Scan, te: float, tr: float, gradient: bool) -> Answer[Contrast] | None:
    ti = scan.inversion_time_ms
    if ti is None or ti <= 0:
        return _inversion_without_time(scan, te, tr, gradient)
    if gradient and te < 12:
        return _answer(Contrast.T1W, 0.95, "inversion-prepared gradient echo")
    if ti >= 1400 and te >= 60 and tr >= 3500:
        return _answer(Contrast.FLAIR, 0.95, "long ti, long te")
    if ti <= 300 and tr >= 1800:
        return _answer(Contrast.STIR, 0.95, "short ti")
    if 500 <= ti <= 1400 and te < 45 and tr >= 1200:
        return _answer(Contrast.T1_FLAIR, 0.9, "middle ti, short te")
    if ti >= 1400 and te < 25 and tr >= 3500 and scan.acquisition_type == "3D":
        return _answer(Contrast.PERFUSION, 0.6, "labelling delay, short te, 3d")
    return _answer(Contrast.T1W, 0.85, "inversion, short te, short tr") if te < 35 and tr < 3000 else None


def _inversion_without_time(scan: Scan, te: float, tr: float, gradient: bool) -> Answer[Contrast] | None:
    """An inversion whose time is not tagged: the other times leave two or three contrasts, words choose among them."""
    if gradient:
        return _answer(Contrast.T1W, 0.85, "inversion-prepared gradient echo") if te < 12 else None
    fits = {Contrast.FLAIR} if te >= 60 and tr >= 3500 else set()
    fits |= {Contrast.STIR} if te >= 20 and tr >= 1800 else set()
    fits |= {Contrast.T1_FLAIR} if te < 45 and 1200 <= tr <= 3500 else set()
    word = contrast_word(scan)
    if word is not None and word[0] in fits:
        return _answer(word[0], 0.8, "inversion without time, words")
    for contrast, plain in (
        (Contrast.FLAIR, te >= 75 and tr >= 3500),
        (Contrast.STIR, 25 <= te < 75 and tr >= 2500),
        (Contrast.T1_FLAIR, te < 25),
    ):
        if plain and contrast in fits:
            return _answer(contrast, 0.65, "inversion without time")
    return None


def _needs_tags(scan: Scan) -> bool:
    """Whether the words name a contrast that has the times of a spin echo, so that only sequence tags deny them."""
    word = contrast_word(scan)
    return word is not None and word[0] in (Contrast.DWI, Contrast.PERFUSION, Contrast.BOLD)


def _spin_echo(scan: Scan, te: float, tr: float) -> Answer[Contrast] | None:
    if te >= 60 and tr >= 800:
        return _answer(Contrast.T2W, 0.9, "long te, long tr" if tr >= 1500 else "long te")
    if te < 35 and tr >= 1800:
        return _answer(Contrast.PD, 0.9, "short te, long tr")
    if te < 35 and tr < 1500:
        return _answer(Contrast.T1W, 0.9, "short te, short tr")
    word = contrast_word(scan)
    if 35 <= te < 60 and tr >= 1800 and (word is None or word[0] not in (Contrast.PD, Contrast.T2W)):
        return _answer(Contrast.PD if te < 45 else Contrast.T2W, 0.6, "middle te, long tr")
    return None


def _gradient_echo(scan: Scan, te: float, tr: float, agent: Agent) -> Answer[Contrast] | None:
    variant = {word.upper() for word in scan.sequence_variant}
    flip = scan.flip_angle_deg or 0
    if scan.angio:
        return _answer(Contrast.ANGIO, 0.9, "angio flag")
    steady = "SS" in variant and "SP" not in variant
    balanced = tr < 15 and abs(te - tr / 2) < (0.2 if steady else 0.1) * tr and flip >= (30 if steady else 35)
    if balanced and "SP" not in variant:
        return _answer(Contrast.BSSFP, 0.9 if steady else 0.75, "steady state, te half of tr")
    if te >= 15:
        return _answer(Contrast.SWI, 0.9, "gradient echo, long te")
    word = contrast_word(scan)
    if word is not None and _fits_gradient_echo(word[0], scan, te, tr, agent):
        return _answer(word[0], 0.7, "gradient echo, words")
    return _answer(Contrast.T1W, 0.85, "gradient echo, short te") if te < 12 else None


def _fits_gradient_echo(contrast: Contrast, scan: Scan, te: float, tr: float, agent: Agent) -> bool:
    """Whether a short-echo gradient echo may be what its words say: words of another series mostly may not."""
    if contrast is Contrast.ANGIO:
        return 15 <= tr <= 60 or (tr < 10 and agent is not Agent.NO)
    if contrast is Contrast.DIXON:
        # Siemens and Philips mark Dixon images in Image Type, so their words alone are another series'
        marked = re.search("siemens|philips", scan.vendor, re.IGNORECASE) and len(scan.image_type) > 2
        return te < 6 and not marked
    if contrast is Contrast.PERFUSION:
        return tr < 10 and agent is Agent.YES
    if contrast is Contrast.BSSFP:
        return tr < 15 and "SP" not in {word.upper() for word in scan.sequence_variant}
    return contrast is Contrast.SWI and te >= 8
