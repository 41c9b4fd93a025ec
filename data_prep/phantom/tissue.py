"""Tissue constants: T1, T2 (ms), proton density (water = 1), ADC (µm²/ms) and uptake of contrast agent (mM).

Sources
- [S] Stanisz et al., Magn Reson Med 54:507 (2005): T1 and T2 at 1.5 and 3 T.
- [B] de Bazelaire et al., Radiology 230:652 (2004): abdominal tissues at 1.5 and 3 T. Where the 1.5 T value here is
  rounded from elsewhere, the 3 T value keeps their ratio (liver 809/586, kidney 1142/966, spleen 1328/1057,
  muscle 898/856, marrow 586/549, fat 382/343).
- [W] Wansapura et al., J Magn Reson Imaging 9:531 (1999): white and grey matter at 3 T (T1 about 840 and 1600 ms).
- [O] O'Reilly and Webb, Magn Reson Med 87:884 (2022): 50 mT in vivo: white 275/102, grey 327/102, muscle 171/39,
  fat 130/90 ms, used here for 0.064 T; Jordanova et al., MAGMA 36:557 (2023) measured the brain at 0.064 T itself.
- [H] Hopkins et al., Magn Reson Med 3:303 (1986): CSF T1 about 4300 ms at every field.
- [A] Bottomley et al., Med Phys 11:425 (1984): T1 of soft tissue grows as a power (about 1/3) of the field, T2 hardly
  changes; used at 0.064 T where no measurement exists.
- [P] Proton densities: Tofts, Quantitative MRI of the Brain (2003), ch. 4: white 0.70, grey 0.82, CSF 1.0.
- [D] ADC: Le Bihan et al., Radiology 161:401 (1986); Taouli and Koh, Radiology 254:47 (2010) for the abdomen.
- [L] Lesions: Ellingson et al., J Magn Reson Imaging 42:1 (2015) and Just and Thelen, Radiology 169:779 (1988)
  (tumour, oedema); Bradley, Radiology 189:15 (1993) (blood); Lansberg et al., Stroke 32:2486 (2001) (stroke ADC).
- [G] Gadobutrol relaxivity in plasma: Szomolanyi et al., Invest Radiol 54:559 (2019): r1 4.78 and 4.97 /mM/s at 1.5 and
  3 T; Rohrer et al., Invest Radiol 40:715 (2005): r1 5.6 at 0.47 T (nearest to 0.064 T), r2 6.1 and 7.1 at 1.5 and 3 T.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

FIELDS_T = (0.064, 1.5, 3.0)
"""Field strengths that the constants cover."""

RELAXIVITY = {0.064: (5.6, 6.1), 1.5: (4.78, 6.1), 3.0: (4.97, 7.1)}
"""(r1, r2) of the contrast agent in /mM/s by field [G]."""


class Tissue(IntEnum):
    """Everything that gives signal, or none; the number is the voxel's code in a tissue map."""

    AIR = 0
    WHITE = 1
    GREY = 2
    CSF = 3
    FAT = 4
    MUSCLE = 5
    BONE = 6
    MARROW = 7
    SKIN = 8
    VITREOUS = 9
    MUCOSA = 10
    VESSEL = 11
    LIVER = 12
    KIDNEY = 13
    SPLEEN = 14
    BOWEL = 15
    BILE = 16
    DISC = 17
    TUMOUR = 18
    TUMOUR_RIM = 19
    NECROSIS = 20
    OEDEMA = 21
    STROKE = 22
    PLAQUE = 23
    HAEMATOMA = 24
    METASTASIS = 25
    CYST = 26


@dataclass(frozen=True, slots=True)
class Constants:
    """Of one tissue at one field: T1, T2 in ms, proton density, ADC in µm²/ms, agent uptake in mM after injection."""

    t1_ms: float
    t2_ms: float
    density: float
    adc: float
    uptake_mm: float


_TABLE: dict[Tissue, tuple[tuple[float, float, float], tuple[float, float, float], float, float, float]] = {
    # tissue: T1 at (0.064, 1.5, 3 T), T2 at the same, density, ADC, uptake
    Tissue.WHITE: ((275, 650, 840), (102, 75, 69), 0.70, 0.75, 0.0),  # [O][S][W][P]
    Tissue.GREY: ((327, 1200, 1600), (102, 95, 90), 0.82, 0.85, 0.0),  # [O][S][W][P]
    Tissue.CSF: ((4300, 4300, 4300), (2000, 2000, 2000), 1.00, 3.0, 0.0),  # [H][P]
    Tissue.FAT: ((130, 250, 278), (90, 80, 75), 0.90, 0.05, 0.0),  # [O][B]
    Tissue.MUSCLE: ((171, 860, 900), (39, 35, 29), 0.75, 1.6, 0.08),  # [O][B]
    Tissue.BONE: ((100, 250, 280), (1, 1, 1), 0.10, 0.1, 0.0),  # cortical bone: no signal at clinical echo times
    Tissue.MARROW: ((195, 550, 590), (60, 50, 49), 0.55, 0.4, 0.03),  # [B][A]
    Tissue.SKIN: ((270, 750, 900), (40, 35, 30), 0.70, 1.2, 0.15),  # [A]
    Tissue.VITREOUS: ((4000, 4200, 4200), (1200, 1200, 1000), 1.00, 2.9, 0.0),  # as CSF
    Tissue.MUCOSA: ((700, 1900, 2100), (250, 220, 190), 0.90, 1.8, 0.25),  # oedematous mucosa and secretion
    Tissue.VESSEL: ((500, 1550, 1650), (8, 8, 8), 0.90, 1.5, 0.8),  # short effective T2 stands for the flow void
    Tissue.LIVER: ((177, 500, 690), (50, 45, 34), 0.70, 1.1, 0.35),  # [B]
    Tissue.KIDNEY: ((230, 650, 768), (66, 60, 53), 0.80, 2.0, 1.0),  # [B]
    Tissue.SPLEEN: ((373, 1057, 1328), (85, 79, 61), 0.80, 0.85, 0.6),  # [B]
    Tissue.BOWEL: ((420, 1200, 1400), (75, 70, 60), 0.75, 1.5, 0.25),  # wall and content [A]
    Tissue.BILE: ((1500, 2200, 2400), (500, 450, 400), 1.00, 2.9, 0.0),  # dilute bile
    Tissue.DISC: ((420, 1100, 1200), (75, 70, 60), 0.70, 1.6, 0.05),  # [A]
    Tissue.TUMOUR: ((560, 1600, 1900), (150, 150, 135), 0.90, 1.25, 0.20),  # [L]
    Tissue.TUMOUR_RIM: ((520, 1450, 1700), (125, 120, 105), 0.88, 1.0, 0.75),  # [L]
    Tissue.NECROSIS: ((1300, 2500, 2800), (330, 320, 300), 0.95, 2.3, 0.03),  # [L]
    Tissue.OEDEMA: ((520, 1350, 1600), (165, 155, 140), 0.88, 1.5, 0.0),  # [L]
    Tissue.STROKE: ((470, 1350, 1700), (155, 150, 135), 0.88, 0.42, 0.0),  # [L]
    Tissue.PLAQUE: ((500, 1300, 1600), (155, 150, 135), 0.86, 1.15, 0.12),  # [L]
    Tissue.HAEMATOMA: ((160, 380, 420), (46, 38, 30), 0.85, 0.55, 0.0),  # early subacute: bright T1w, dark T2w [L]
    Tissue.METASTASIS: ((420, 1150, 1450), (110, 100, 85), 0.85, 1.0, 0.25),  # [B][D]
    Tissue.CYST: ((3200, 3300, 3400), (900, 900, 800), 1.00, 2.8, 0.0),  # simple fluid
}


def constants(tissue: Tissue, field_t: float) -> Constants:
    """Constants of a tissue at one of :data:`FIELDS_T`.

    Raises:
        KeyError: a field strength without constants.
    """
    if field_t not in FIELDS_T:
        raise KeyError(f"no tissue constants at {field_t} T: choose from {FIELDS_T}")
    if tissue is Tissue.AIR:
        return Constants(1.0, 1.0, 0.0, 0.0, 0.0)
    column = FIELDS_T.index(field_t)
    t1_ms, t2_ms, density, adc, uptake_mm = _TABLE[tissue]
    return Constants(t1_ms[column], t2_ms[column], density, adc, uptake_mm)
