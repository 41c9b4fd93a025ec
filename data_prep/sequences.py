"""Which sequence a series is: physics first, words second.

Times (TE, TR, TI), flip angle, scanning sequence and diffusion weighting decide; the series description and protocol
name are asked only where physics leaves the answer open, because descriptions are typed by hand and often belong to
another series. Thresholds follow the usual clinical ranges (McRobbie et al., *MRI from Picture to Proton*, 3rd ed.,
ch. 3 and 12) and hold from 0.06 to 7 T, since the times are chosen for contrast, not for the field.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from data_prep.headers import Scan
from fm.data.sample import Agent, Contrast, Role

_WORDS: tuple[tuple[Contrast, str], ...] = (
    (Contrast.ADC, r"\badc\b|d?adc|apparent diff"),
    (Contrast.DWI, r"dwi|dti|diff(usion)?|ep2d_diff|trace"),
    (Contrast.PERFUSION, r"perf(usion)?|dsc|dce|\basl\b|cbf|cbv|mtt"),
    (Contrast.BOLD, r"bold|fmri|resting|task"),
    (Contrast.SWI, r"swi|swan|t2\s?\*|t2star|hemo|gre_t2"),
    (Contrast.ANGIO, r"tof|angio|mra\b|mrv\b"),
    (Contrast.T1_FLAIR, r"t1[\s_-]*flair"),
    (Contrast.FLAIR, r"flair|dark[\s_-]?fluid|tirm.*dark"),
    (Contrast.STIR, r"stir|tirm"),
    (Contrast.DIXON, r"dixon|ideal|lava[\s_-]?flex"),
    (Contrast.BSSFP, r"fiesta|trufi|ciss|bffe|b-ffe|true\s?fisp"),
    (Contrast.PD, r"\bpd|pdw|proton|[_\s]pd"),
    (Contrast.T2W, r"t2"),
    (Contrast.T1W, r"t1|mprage|bravo|spgr|vibe|thrive"),
)
_AGENT_WORDS = re.compile(r"\+\s*c\b|post|\bce\b|\bc\+|gd\b|gado|contrast|\bkm\b|_km(_|$)|_gd", re.IGNORECASE)
_NO_AGENT = re.compile(r"[\W_0]*|no(ne|t given)?|n/?a|without|nil|unknown|native|plain", re.IGNORECASE)
_DOSE = re.compile(r"\d")
_NAMED_AGENT = re.compile(
    r"gado|dotarem|multihance|gadavist|gadovist|magnevist|omniscan|prohance|primovist|eovist|clariscan|vueway|elucirem",
    re.IGNORECASE,
)
_REGISTERED = re.compile(r"(^|[\s_-])(reg|registered|coreg|resliced|realigned)($|[\s_-])", re.IGNORECASE)

_REGIONS: tuple[tuple[str, str], ...] = (
    ("head", r"head|brain|skull|cranium|neuro|hirn|kopf|sella|orbit|iac"),
    ("neck", r"neck|hals|thyroid"),
    ("spine", r"spine|lspine|cspine|tspine|lumbar|cervical|thoracic|sacr"),
    ("breast", r"breast|mamma"),
    ("heart", r"heart|card"),
    ("chest", r"chest|thorax|lung"),
    ("abdomen", r"abd|liver|kidney|renal|pancrea|mrcp|spleen|bauch"),
    ("pelvis", r"pelvi|prostat|uter|rectum|bladder"),
    ("shoulder", r"shoulder|schulter"),
    ("knee", r"knee|knie"),
    ("extremity", r"hip|ankle|foot|wrist|hand|elbow|arm|leg|femur|extremity"),
)


@dataclass(kw_only=True, slots=True)
class Recognition:
    """What a series is, and the rule that said so."""

    contrast: Contrast
    agent: Agent
    role: Role
    rule: str


def recognise(scan: Scan, volumes: int = 1, b_value: float | None = None) -> Recognition:
    """Contrast, agent and role of a series.

    Args:
        scan: the header.
        volumes: 3D volumes that the series holds (a run of echo-planar volumes is BOLD).
        b_value: diffusion weighting in s/mm² where the converter knows it and the header does not.
    """
    contrast, rule = _contrast(scan, volumes, scan.b_value if b_value is None else b_value)
    return Recognition(contrast=contrast, agent=_agent(scan), role=_role(scan, contrast), rule=rule)


def region_of(scan: Scan) -> str:
    """Body region word from Body Part Examined, else from the words of the series; 'unknown' where neither tells."""
    for text in (scan.body_part, scan.description, scan.protocol):
        for region, pattern in _REGIONS:
            if re.search(pattern, text, re.IGNORECASE):
                return region
    return "unknown"


def _contrast(scan: Scan, volumes: int, b_value: float | None) -> tuple[Contrast, str]:
    kinds = {kind.upper() for kind in scan.image_type}
    if kinds & {"ADC", "DADC", "APPARENT DIFFUSION COEFFICIENT"}:
        return Contrast.ADC, "image type ADC"
    if "DERIVED" in kinds and _word(scan) is Contrast.ADC:
        return Contrast.ADC, "derived, words ADC"
    echo_planar = "EP" in {word.upper() for word in scan.scanning_sequence}
    weighted = b_value is not None and (b_value > 0 or echo_planar)
    if weighted or kinds & {"DIFFUSION", "TRACEW"} or re.search(r"ep_b|dti|diff", scan.sequence_name):
        return Contrast.DWI, "diffusion weighting"
    found = _by_times(scan, volumes)
    if found is not None:
        return found
    word = _word(scan)
    return (word, "words") if word is not None else (Contrast.OTHER, "nothing told")


def _by_times(scan: Scan, volumes: int) -> tuple[Contrast, str] | None:
    """The physics tags; None where they are absent or fit several contrasts."""
    te, tr, ti = scan.echo_time_ms, scan.repetition_time_ms, scan.inversion_time_ms
    sequence = {word.upper() for word in scan.scanning_sequence}
    if te is None or tr is None:
        return None
    gradient = "GR" in sequence and "SE" not in sequence
    if "EP" in sequence and gradient and tr >= 400:
        return (Contrast.BOLD, "gradient EPI, repeated") if volumes >= 3 else None
    if (ti is not None and ti > 0) or "IR" in sequence:
        found = _inversion(te, tr, ti, gradient)
        if found is not None:
            return found
    if gradient or (tr < 200 and "SE" not in sequence):
        return _gradient_echo(scan, te, tr)
    if "EP" in sequence:
        return None
    if te >= 60 and tr >= 1500:
        return Contrast.T2W, "long TE, long TR"
    if te < 35 and tr >= 1800:
        return Contrast.PD, "short TE, long TR"
    if te < 35 and tr < 1500:
        return Contrast.T1W, "short TE, short TR"
    return None


def _inversion(te: float, tr: float, ti: float | None, gradient: bool) -> tuple[Contrast, str] | None:
    if ti is None or ti <= 0:
        return None
    if gradient and te < 12:
        return Contrast.T1W, "inversion-prepared gradient echo"
    if ti >= 1400 and te >= 60 and tr >= 3500:
        return Contrast.FLAIR, "long TI, long TE"
    if ti <= 300 and tr >= 1800:
        return Contrast.STIR, "short TI"
    if 500 <= ti <= 1400 and te < 45 and tr >= 1200:
        return Contrast.T1_FLAIR, "middle TI, short TE"
    return (Contrast.T1W, "inversion, short TE, short TR") if te < 35 and tr < 3000 else None


def _gradient_echo(scan: Scan, te: float, tr: float) -> tuple[Contrast, str] | None:
    variant = {word.upper() for word in scan.sequence_variant}
    steady = "SS" in variant and "SP" not in variant
    if steady and tr < 15 and abs(te - tr / 2) < 0.2 * tr and (scan.flip_angle_deg or 0) >= 30:
        return Contrast.BSSFP, "steady state, TE half of TR"
    if te >= 15:
        return Contrast.SWI, "gradient echo, long TE"
    word = _word(scan)
    if word in (Contrast.ANGIO, Contrast.DIXON, Contrast.PERFUSION, Contrast.BSSFP, Contrast.SWI):
        return word, "gradient echo, words"
    if te < 12:
        return Contrast.T1W, "gradient echo, short TE"
    return None


def _word(scan: Scan) -> Contrast | None:
    """Contrast by the description, then by the protocol name."""
    for text in (scan.description, scan.protocol):
        for contrast, pattern in _WORDS:
            if re.search(pattern, text, re.IGNORECASE):
                return contrast
    return None


def _agent(scan: Scan) -> Agent:
    """Yes needs the agent named or dosed, or the tag and the words together; the bare tag or bare words mean unknown.

    The tag belongs to the exam card and is often left from another series, or filled for all of them.
    """
    if not scan.agent:
        return Agent.UNKNOWN
    if _NO_AGENT.fullmatch(scan.agent):
        return Agent.NO
    named = bool(_NAMED_AGENT.search(scan.agent) or _DOSE.search(scan.agent)) or (scan.agent_volume_ml or 0) > 0
    spoken = bool(_AGENT_WORDS.search(scan.description) or _AGENT_WORDS.search(scan.protocol))
    return Agent.YES if named or spoken else Agent.UNKNOWN


def _role(scan: Scan, contrast: Contrast) -> Role:
    if _REGISTERED.search(scan.description) or _REGISTERED.search(scan.protocol):
        return Role.REGISTERED
    derived = bool(scan.image_type) and scan.image_type[0].upper() == "DERIVED"
    return Role.DERIVED if derived or contrast is Contrast.ADC else Role.ORIGINAL
