"""What a scanner itself calls its pulse sequence: Siemens' Sequence Name, GE's and Philips' private elements.

These names come from the sequence that ran, not from a keyboard, so they rank with the physics tags. They are listed in
dcm2niix's vendor notes (Siemens, GE, Philips).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from data_prep.headers import Scan
from fm.data.sample import Contrast

_TELLS: tuple[tuple[Contrast, str], ...] = (
    (Contrast.DWI, r"ep_b|dti|diff|dwi?se"),
    (Contrast.PERFUSION, r"asl"),
    (Contrast.ANGIO, r"(^|\W)fi[23]d|tof|(^|[\W_])pca?($|[\W_])"),
    (Contrast.BSSFP, r"fiesta|b-?[tf]fe|(^|\W)tfi|ci3d|trufi|ssfp"),
    (Contrast.SWI, r"swan|swi|t2ffe|medic|merge|(^|\W)me2d"),
    (Contrast.T1_FLAIR, r"t1flair"),
    (Contrast.FLAIR, r"t2flair|cubeflair"),
    (Contrast.DIXON, r"lava-?flex|dixon"),
)
_USUALLY: tuple[tuple[Contrast, str], ...] = (
    (Contrast.T1W, r"tfl3d|t1tfe|bravo|mprage|efgre3d|lava|vibe|(^|\W)fl[23]d|fgre|t1ffe"),
    (Contrast.T2W, r"ssfse|(^|\W)h2d"),
)
_PLANAR = re.compile(r"ep_b|epfid|epse|epi|ep2d|dwi?se")
_GRADIENT = re.compile(r"epfid|feepi|epirt|tfl|(^|\W)f[il][23]d|ffe|tfe|fgre|bravo|mprage|lava|vibe|swan|fiesta|tof")
_SPIN = re.compile(r"tse|fse|(^|\W)se[23]d|(^|\W)spc|(^|\W)h2d|cube|memp|epse|seepi|dwi?se|tir|flair")
_INVERSION = re.compile(r"tir|flair|spcir")


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """How the echo is made, as far as tags tell."""

    gradient: bool
    spin: bool
    planar: bool
    inversion: bool
    tagged: bool
    """Tags told; otherwise times and flip angle were asked."""


def pulse_contrast(scan: Scan) -> Contrast | None:
    """Contrast that the pulse sequence has whatever its times; None for one that serves several."""
    return _search(_TELLS, scan)


def usual_contrast(scan: Scan) -> Contrast | None:
    """Contrast that the pulse sequence usually has, for headers without times."""
    return _search(_USUALLY, scan)


def family_of(scan: Scan) -> Family:
    """Echo, read-out and preparation of a series.

    Scanning Sequence comes first; where it is absent or says research mode, a repetition time under 200 ms or a flip
    angle up to 35° means a gradient echo: no spin echo is made with either.
    """
    sequence = {word.upper() for word in scan.scanning_sequence} - {"RM"}
    options = {word.upper() for word in scan.scan_options}
    name = _name(scan)
    planar = "EP" in sequence or "EPI_GEMS" in options or bool(_PLANAR.search(name))
    inversion = "IR" in sequence or (scan.inversion_time_ms or 0) > 0 or bool(_INVERSION.search(name))
    spin = "SE" in sequence or ("GR" not in sequence and bool(_SPIN.search(name)))
    gradient = not spin and ("GR" in sequence or bool(_GRADIENT.search(name)))
    tagged = spin or gradient or bool(sequence)
    if not spin and not gradient and not planar:
        fast = scan.repetition_time_ms is not None and scan.repetition_time_ms < 200
        low = scan.flip_angle_deg is not None and 0 < scan.flip_angle_deg <= 35
        gradient = fast or (low and not sequence)
    return Family(gradient=gradient, spin=spin, planar=planar, inversion=inversion, tagged=tagged)


def _name(scan: Scan) -> str:
    return f"{scan.sequence_name} {scan.technique}".strip().lower()


def _search(table: tuple[tuple[Contrast, str], ...], scan: Scan) -> Contrast | None:
    return next((contrast for contrast, pattern in table if re.search(pattern, _name(scan))), None)
