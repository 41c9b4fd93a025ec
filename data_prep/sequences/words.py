"""The words of a series: description and protocol name, typed by hand, often left from another series.

Vendors' names for sequences follow the MR acronym tables that Siemens publishes for all five large makers.
"""

from __future__ import annotations

import re

from data_prep.headers import Scan
from fm.data.sample import Contrast, DixonPart

_CONTRASTS: tuple[tuple[Contrast, str], ...] = (
    (Contrast.ADC, r"\badc\b|d?adc|apparent diff"),
    (Contrast.DWI, r"dwi|dti|diff(usion)?|ep2d_diff|trace"),
    (Contrast.PERFUSION, r"perf(usion)?|dsc|dce|p?c?asl\b|cbf|cbv|mtt|\bttp\b|tmax"),
    (Contrast.BOLD, r"bold|fmri|resting|task|fe[\s_-]?epi"),
    (Contrast.SWI, r"swi|swan|t2\s?\*|t2star|hemo|gre_t2|t2w?_ffe|medic\b|merge\b"),
    (Contrast.ANGIO, r"tof|angio|mra\b|mrv\b|s3di|inflow|\bpca\b|_pc_|twist|tricks"),
    (Contrast.T1_FLAIR, r"t1[\s_-]*flair|t1w?[\s_-]*(tirm|ir[\s_-]*[tf]se)"),
    (Contrast.FLAIR, r"flair|dark[\s_-]?fluid|tirm.*dark"),
    (Contrast.STIR, r"stir|tirm"),
    (Contrast.DIXON, r"dixon|ideal|lava[\s_-]?flex"),
    (Contrast.BSSFP, r"fiesta|tru[\s_-]?fi|ciss|ci3d|b-?ffe|b-?tfe|true\s?fisp|ssfp|tf2d|balanced"),
    (Contrast.PD, r"\bpd|pdw|proton|[_\s]pd"),
    (Contrast.T2W, r"t2|haste|ssfse|mrcp"),
    (Contrast.T1W, r"t1|mprage|bravo|spgr|vibe|thrive|lava"),
)
_DUAL_ECHO = re.compile(r"pd\w*[\s_/+&-]{0,3}t2|t2\w*[\s_/+&-]{0,3}pd|dual[\s_-]?echo|double[\s_-]?echo", re.IGNORECASE)
_DIXON_PARTS: tuple[tuple[DixonPart, str], ...] = (
    (DixonPart.OPPOSED_PHASE, r"opp(osed)?([\s_-]|$)|out[\s_-]?(of)?[\s_-]?phase|_op(_|$)"),
    (DixonPart.IN_PHASE, r"in[\s_-]?phase|[_\s](in|ip)([_\s]|$)"),
    (DixonPart.WATER, r"water|[_\s]w([_\s]|$)"),
    (DixonPart.FAT, r"^fat\b|fat only|[_\s]f([_\s]|$)"),
)
_FAT_SUPPRESSED = re.compile(
    r"(^|[\s_-])(fs|fatsat|fat[\s_-]?sat(uration)?|spir|spair|we|chess|fat[\s_-]?supp\w*)($|[\s_-])|spair|fatsat|thrive",
    re.IGNORECASE,
)
_THREE_D = re.compile(
    r"3d|mprage|mpr_|bravo|space|spc|cube|vista|vibe|thrive|lava|ciss|swi3d|swan|fiesta-c|tof_3d", re.IGNORECASE
)
_TWO_D = re.compile(r"2d|haste|ssfse|_ssh", re.IGNORECASE)
_AGENT = re.compile(r"\+\s*c\b|post|\bce\b|\bc\+|gd\b|gado|contrast|\bkm\b|_km(_|$)|_gd", re.IGNORECASE)
_BEFORE_AGENT = re.compile(
    r"(^|[\s_-])(pre|nativ|native|unenhanced|non[\s_-]?contrast|w/?o|without|ohne)($|[\s_-])|t1pre", re.IGNORECASE
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


def texts(scan: Scan) -> tuple[str, str]:
    """Description, then protocol name: the description is nearer to the series."""
    return scan.description, scan.protocol


def contrast_word(scan: Scan) -> tuple[Contrast, int] | None:
    """Contrast that the words name, and which of :func:`texts` names it; None where neither does."""
    for rank, text in enumerate(texts(scan)):
        if scan.echo_number is not None and _DUAL_ECHO.search(text):
            return (Contrast.PD if scan.echo_number == 1 else Contrast.T2W), rank
        for contrast, pattern in _CONTRASTS:
            if re.search(pattern, text, re.IGNORECASE):
                return contrast, rank
    return None


def dixon_word(scan: Scan) -> DixonPart | None:
    """Part of a Dixon acquisition that the words name."""
    for text in texts(scan):
        for part, pattern in _DIXON_PARTS:
            if re.search(pattern, text, re.IGNORECASE):
                return part
    return None


def _says(scan: Scan, pattern: re.Pattern[str]) -> bool:
    """Whether description or protocol name match."""
    return any(pattern.search(text) for text in texts(scan))


def says_fat_suppressed(scan: Scan) -> bool:
    """Whether the description, or the protocol name where there is none, names a fat suppression."""
    return bool(_FAT_SUPPRESSED.search(scan.description or scan.protocol))


def says_three_d(scan: Scan) -> bool | None:
    """Whether the words name a 3D (True) or 2D sequence (False); None where they name neither, or both."""
    three, two = _says(scan, _THREE_D), _says(scan, _TWO_D)
    return three if three != two else None


def says_agent(scan: Scan) -> bool:
    """Whether the words name contrast agent."""
    return _says(scan, _AGENT)


def says_before_agent(scan: Scan) -> bool:
    """Whether the words put the series before the contrast agent."""
    return _says(scan, _BEFORE_AGENT)


def says_registered(scan: Scan) -> bool:
    """Whether the words tell of a registration."""
    return _says(scan, _REGISTERED)


def region_word(text: str) -> str | None:
    """Body region named in a text."""
    for region, pattern in _REGIONS:
        if re.search(pattern, text, re.IGNORECASE):
            return region
    return None
