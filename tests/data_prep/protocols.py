"""Headers of clinical series, generated from published protocols: what a recogniser must get right.

Written before the rules that they test, from the sources each protocol names; nothing here looks at the rules. Times
are drawn from the published range, tags are spelt as each vendor spells them, and faults are those of real archives:
words missing, words of another series, times or sequence tags missing, an agent tag left from another series.

Sources: Alfaro-Almagro 2018 (UK Biobank, NeuroImage 166, table 1); Ellingson 2015 (BTIP, Neuro-Oncology 17);
Glasser 2013 (HCP, NeuroImage 80); Jack 2008 (ADNI, JMRI 27); Westbrook, Handbook of MRI Technique, 5th ed. (table 2.1);
Melhem 1997 (T1 FLAIR of the spine, AJNR 18); Peterfy 2008 (OAI knee); Welker 2015 (DSC, AJNR 36); Alsop 2015 (ASL,
MRM 73); Haacke 2009 (SWI, AJNR 30); Kramer 2020 (SCMR protocols); Turkbey 2019 (PI-RADS 2.1); PMC9201619, table 7
(liver); PMC9743254, table 2 (shoulder).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from pydicom.dataset import Dataset

from fm.data.sample import Contrast

Range = tuple[float, float]
SIEMENS, GE, PHILIPS = "SIEMENS", "GE MEDICAL SYSTEMS", "Philips"


class Fault(StrEnum):
    """What is wrong with a header."""

    NONE = "none"
    BLANK_WORDS = "blank words"
    SWAPPED_WORDS = "swapped words"
    OTHER_PROTOCOL = "protocol name of another series"
    NO_INVERSION_TIME = "no inversion time"
    NO_TIMES = "no times"
    NO_SEQUENCE_TAGS = "no sequence tags"
    LEFTOVER_AGENT = "agent tag of another series"


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """One published sequence. Times in ms, angles in degrees, b in s/mm²."""

    name: str
    contrast: Contrast
    kind: str
    """se, tse, ir (spin echo after inversion), gre, mprage, ssfp, ep_gr, ep_se."""
    tr: Range
    te: Range
    ti: Range | None = None
    flip: Range = (90, 90)
    three_d: bool = False
    fat: bool = False
    """Whether fat is suppressed."""
    b: float | None = None
    volumes: int = 1
    echo: int = 1
    agent: bool = False
    region: str = "BRAIN"
    field_t: tuple[float, ...] = (1.5, 3.0)
    words: dict[str, str] = field(default_factory=dict)
    """Series description by vendor; the vendors named are those that are generated."""
    pulse: dict[str, str] = field(default_factory=dict)
    """Pulse sequence by vendor, as its scanner names it."""
    image_type: tuple[str, ...] = ()
    angio: bool = False
    told_by_words: bool = False
    """No tag tells it: without its own words it cannot be known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A generated header and the truth."""

    protocol: Protocol
    vendor: str
    fault: Fault
    header: Dataset

    @property
    def name(self) -> str:
        return f"{self.protocol.name}, {self.vendor}, {self.fault}"


def _all(siemens: str, ge: str, philips: str) -> dict[str, str]:
    return {SIEMENS: siemens, GE: ge, PHILIPS: philips}


PROTOCOLS = (
    Protocol(
        name="T1w spin echo (Westbrook)", contrast=Contrast.T1W, kind="se", tr=(300, 800), te=(8, 20),
        words=_all("t1_se_tra", "Ax T1 SE", "T1W_SE"), pulse=_all("*se2d1", "memp", "SE"),
    ),
    Protocol(
        name="T1w turbo spin echo (Westbrook)", contrast=Contrast.T1W, kind="tse", tr=(400, 700), te=(8, 15),
        region="LSPINE", words=_all("t1_tse_sag", "Sag T1 FSE", "T1W_TSE"), pulse=_all("*tse2d1_3", "fse", "TSE"),
    ),
    Protocol(
        name="T1w after agent (Westbrook)", contrast=Contrast.T1W, kind="se", tr=(400, 700), te=(8, 15), agent=True,
        words=_all("t1_se_tra_KM", "Ax T1 +C", "T1W_SE GD"), pulse=_all("*se2d1", "memp", "SE"),
    ),
    Protocol(
        name="MPRAGE (ADNI, HCP, UK Biobank)", contrast=Contrast.T1W, kind="mprage", tr=(2000, 2400), te=(2.0, 3.6),
        ti=(880, 1100), flip=(8, 9), three_d=True, words={SIEMENS: "t1_mprage_sag_p2_iso"},
        pulse={SIEMENS: "*tfl3d1_16ns"},
    ),
    Protocol(
        name="IR-prepared SPGR (ADNI)", contrast=Contrast.T1W, kind="mprage", tr=(6.5, 8.5), te=(2.8, 3.3),
        ti=(400, 450),
        flip=(8, 12), three_d=True, words={GE: "Sag IR-FSPGR BRAVO", PHILIPS: "sT1W_3D_TFE"},
        pulse={GE: "efgre3d", PHILIPS: "T1TFE"},
    ),
    Protocol(
        name="MPRAGE after agent (BTIP)", contrast=Contrast.T1W, kind="mprage", tr=(2100, 2200), te=(2.4, 3.5),
        ti=(1000, 1100), flip=(10, 15), three_d=True, agent=True, words={SIEMENS: "t1_mpr_tra_post gd"},
        pulse={SIEMENS: "*tfl3d1"},
    ),
    Protocol(
        name="dual-echo gradient echo, opposed phase (liver)", contrast=Contrast.T1W, kind="gre", tr=(160, 180),
        te=(2.2, 2.4), flip=(70, 70), region="LIVER", words=_all("t1_fl2d_opp_tra", "Ax OUT PHASE T1", "T1W_FFE out"),
        pulse=_all("*fl2d2", "fgre", "T1FFE"),
    ),
    Protocol(
        name="volume interpolated gradient echo, arterial phase (liver)", contrast=Contrast.T1W, kind="gre",
        tr=(4.0, 4.5), te=(1.7, 2.1), flip=(10, 12), three_d=True, fat=True, agent=True, region="LIVER",
        words=_all("t1_vibe_fs_tra_art", "Ax LAVA T1 +C", "T1 THRIVE post"), pulse=_all("*fl3d1", "lava", "T1TFE"),
    ),
    Protocol(
        name="T1w fat-suppressed turbo spin echo (Westbrook)", contrast=Contrast.T1W, kind="tse", tr=(500, 700),
        te=(9, 14), fat=True, region="SHOULDER", words=_all("t1_tse_fs_cor", "Cor T1 FSE FS", "T1W_SPIR"),
        pulse=_all("*tse2d1_3", "fse", "TSE"),
    ),
    Protocol(
        name="T2w turbo spin echo (BTIP)", contrast=Contrast.T2W, kind="tse", tr=(2500, 6000), te=(80, 120),
        flip=(120, 180), words=_all("t2_tse_tra", "Ax T2 FSE", "T2W_TSE"), pulse=_all("*tse2d1_15", "fse-xl", "TSE"),
    ),
    Protocol(
        name="T2w half-Fourier single shot (liver)", contrast=Contrast.T2W, kind="tse", tr=(1030, 1100), te=(83, 90),
        flip=(150, 180), region="ABDOMEN", words=_all("t2_haste_cor", "Cor SSFSE", "T2W_SSh"),
        pulse=_all("*h2d1_256", "ssfse", "TSE"),
    ),
    Protocol(
        name="T2w SPACE (HCP)", contrast=Contrast.T2W, kind="tse", tr=(3200, 3200), te=(400, 565), flip=(120, 120),
        three_d=True, words={SIEMENS: "t2_spc_sag_iso", GE: "Sag CUBE T2"}, pulse={SIEMENS: "*spcR_282ns", GE: "cube"},
    ),
    Protocol(
        name="T2w of the prostate (PI-RADS)", contrast=Contrast.T2W, kind="tse", tr=(4000, 6000), te=(100, 110),
        flip=(150, 160), region="PROSTATE", words=_all("t2_tse_tra_320", "Ax T2 FRFSE", "T2W_TSE_ax"),
        pulse=_all("*tse2d1_25", "frfse-xl", "TSE"),
    ),
    Protocol(
        name="FLAIR (BTIP)", contrast=Contrast.FLAIR, kind="ir", tr=(6500, 10000), te=(100, 140), ti=(2000, 2500),
        flip=(120, 180), words=_all("t2_tirm_tra_dark-fluid", "Ax T2 FLAIR", "FLAIR_longTR"),
        pulse=_all("*tir2d1_16", "t2flair", "TIR"),
    ),
    Protocol(
        name="FLAIR SPACE (UK Biobank)", contrast=Contrast.FLAIR, kind="ir", tr=(4800, 5000), te=(340, 395),
        ti=(1650, 1800), flip=(120, 120), three_d=True, fat=True,
        words=_all("t2_space_dark-fluid_sag", "Sag CUBE T2 FLAIR", "3D FLAIR VISTA"),
        pulse=_all("*spcir_242ns", "cubeflair", "TIR"),
    ),
    Protocol(
        name="T1 FLAIR (Melhem)", contrast=Contrast.T1_FLAIR, kind="ir", tr=(1800, 2500), te=(8, 24), ti=(750, 900),
        flip=(90, 150), region="CSPINE", words=_all("t1_tirm_sag_dark-fluid", "Sag T1 FLAIR", "T1W_IR_TSE"),
        pulse=_all("*tir2d1_5", "t1flair", "TIR"),
    ),
    Protocol(
        name="STIR (Westbrook)", contrast=Contrast.STIR, kind="ir", tr=(3000, 6000), te=(30, 70), ti=(130, 220),
        flip=(120, 180), fat=True, region="LSPINE", words=_all("t2_tirm_sag", "Sag STIR", "STIR_longTE"),
        pulse=_all("*tir2d1_9", "fse-xl", "TIR"),
    ),
    Protocol(
        name="PD turbo spin echo (OAI)", contrast=Contrast.PD, kind="tse", tr=(2200, 3700), te=(27, 32),
        flip=(140, 180),
        region="KNEE", words=_all("pd_tse_cor", "Cor PD FSE", "PDW_TSE"), pulse=_all("*tse2d1_7", "fse-xl", "TSE"),
    ),
    Protocol(
        name="PD with fat suppression (OAI)", contrast=Contrast.PD, kind="tse", tr=(3200, 3400), te=(28, 32),
        flip=(140, 180), fat=True, region="KNEE", words=_all("pd_tse_fs_sag", "Sag PD FS", "PDW_SPAIR"),
        pulse=_all("*tse2d1_5", "fse-xl", "TSE"),
    ),
    Protocol(
        name="dual echo, first (ADNI)", contrast=Contrast.PD, kind="tse", tr=(3000, 3000), te=(10, 14), flip=(150, 180),
        words=_all("pd+t2_tse_tra", "Ax PD/T2 FSE", "PDT2_TSE"), pulse=_all("*tse2d2_7", "fse-xl", "TSE"),
    ),
    Protocol(
        name="dual echo, second (ADNI)", contrast=Contrast.T2W, kind="tse", tr=(3000, 3000), te=(90, 103), echo=2,
        flip=(150, 180), words=_all("pd+t2_tse_tra", "Ax PD/T2 FSE", "PDT2_TSE"),
        pulse=_all("*tse2d2_7", "fse-xl", "TSE"),
    ),
    Protocol(
        name="DWI, b = 1000 (BTIP)", contrast=Contrast.DWI, kind="ep_se", tr=(5000, 8000), te=(56, 95), fat=True,
        b=1000,
        words=_all("ep2d_diff_3scan_trace", "Ax DWI", "DWI_SSh"), pulse=_all("*ep_b1000t", "epi2", "DwiSE"),
    ),
    Protocol(
        name="DWI, b = 0 (BTIP)", contrast=Contrast.DWI, kind="ep_se", tr=(5000, 8000), te=(56, 95), fat=True, b=0,
        words=_all("ep2d_diff_3scan", "Ax DWI", "DWI_SSh"), pulse=_all("*ep_b0", "epi2", "DwiSE"),
    ),
    Protocol(
        name="ADC map (BTIP)", contrast=Contrast.ADC, kind="ep_se", tr=(5000, 8000), te=(56, 95), fat=True,
        words=_all("ep2d_diff_3scan_ADC", "Apparent Diffusion Coefficient (mm2/s)", "dADC"),
        pulse=_all("*ep_b0_1000", "epi2", "DwiSE"), image_type=("DERIVED", "PRIMARY", "DIFFUSION", "ADC"),
    ),
    Protocol(
        name="ADC map named in words only", contrast=Contrast.ADC, kind="ep_se", tr=(5000, 8000), te=(56, 95), fat=True,
        words={GE: "ADC (10^-6 mm2/s)", PHILIPS: "ADC"}, pulse={GE: "epi2", PHILIPS: "DwiSE"},
        image_type=("DERIVED", "SECONDARY", "OTHER"), told_by_words=True,
    ),
    Protocol(
        name="SWI (Haacke)", contrast=Contrast.SWI, kind="gre", tr=(27, 49), te=(20, 40), flip=(15, 20), three_d=True,
        words=_all("t2_swi3d_tra", "Ax SWAN", "SWIp"), pulse=_all("*fl3d1r", "swan", "T1FFE"),
    ),
    Protocol(
        name="T2* gradient echo (ADNI)", contrast=Contrast.SWI, kind="gre", tr=(600, 700), te=(18, 22), flip=(15, 25),
        words=_all("t2_fl2d_tra_hemo", "Ax T2* GRE", "T2W_FFE"), pulse=_all("*fl2d1", "gre", "T2FFE"),
    ),
    Protocol(
        name="resting-state BOLD (HCP, UK Biobank)", contrast=Contrast.BOLD, kind="ep_gr", tr=(720, 3000), te=(30, 39),
        flip=(52, 90), fat=True, volumes=200, words=_all("ep2d_bold_rest", "fMRI resting", "FE_EPI rest"),
        pulse=_all("*epfid2d1_64", "epiRT", "FEEPI"),
    ),
    Protocol(
        name="DSC perfusion (Welker)", contrast=Contrast.PERFUSION, kind="ep_gr", tr=(1000, 1500), te=(25, 50),
        flip=(60, 90), fat=True, volumes=60, agent=True, words=_all("ep2d_perf", "Ax DSC perfusion", "T2* perfusion"),
        pulse=_all("*epfid2d1_128", "epi", "FEEPI"),
    ),
    Protocol(
        name="ASL (Alsop)", contrast=Contrast.PERFUSION, kind="se", tr=(4600, 4900), te=(10, 11), ti=(1500, 2025),
        three_d=True, words={GE: "3D ASL PLD 2025", SIEMENS: "tgse_pcasl"},
        pulse={GE: "3dasl", SIEMENS: "*tgse3d1_1001"},
    ),
    Protocol(
        name="balanced steady state, cine (SCMR)", contrast=Contrast.BSSFP, kind="ssfp", tr=(2.8, 3.4), te=(1.2, 1.7),
        flip=(50, 80), volumes=25, region="HEART", words=_all("tf2d12_retro_4ch", "4ch FIESTA CINE", "B-TFE_BH 4CH"),
        pulse=_all("*tfi2d1_12", "fiesta", "B-TFE"),
    ),
    Protocol(
        name="CISS and FIESTA-C (inner ear)", contrast=Contrast.BSSFP, kind="ssfp", tr=(5.0, 6.5), te=(2.2, 2.9),
        flip=(45, 70), three_d=True, words=_all("t2_ci3d_tra_iac", "Ax FIESTA-C IAC", "DRIVE bFFE"),
        pulse=_all("*ci3d1", "fiesta-c", "B-FFE"),
    ),
    Protocol(
        name="time of flight (Westbrook)", contrast=Contrast.ANGIO, kind="gre", tr=(25, 50), te=(3.4, 7.0),
        flip=(20, 30),
        three_d=True, angio=True, words=_all("TOF_3D_multi-slab", "3D TOF COW", "s3DI_MC_HR"),
        pulse=_all("*fi3d1r", "tof3d", "T1FFE"),
    ),
    Protocol(
        name="phase contrast angiography (Westbrook)", contrast=Contrast.ANGIO, kind="gre", tr=(25, 33), te=(5, 7),
        flip=(15, 30), angio=True, words=_all("fl_pc_sag_venous", "Sag 2D PC MRV", "PCA venous"),
        pulse=_all("*fl2d1_pc", "pc", "PCA"),
    ),
    Protocol(
        name="Dixon gradient echo, water (liver)", contrast=Contrast.DIXON, kind="gre", tr=(4.0, 6.9), te=(1.2, 2.5),
        flip=(9, 12), three_d=True, fat=True, region="ABDOMEN",
        words=_all("t1_vibe_dixon_tra_W", "WATER: Ax LAVA-Flex", "mDIXON_W"),
        pulse=_all("*fl3d2", "lavaflex", "T1FFE"), image_type=("DERIVED", "PRIMARY", "DIXON", "WATER"),
    ),
    Protocol(
        name="Dixon gradient echo, in phase (liver)", contrast=Contrast.DIXON, kind="gre", tr=(4.0, 6.9), te=(2.2, 2.5),
        flip=(9, 12), three_d=True, region="ABDOMEN",
        words=_all("t1_vibe_dixon_tra_in", "InPhase: Ax LAVA-Flex", "mDIXON_IP"),
        pulse=_all("*fl3d2", "lavaflex", "T1FFE"), image_type=("ORIGINAL", "PRIMARY", "DIXON", "IN_PHASE"),
    ),
)  # fmt: skip


def generate(seed: int = 0) -> Iterator[Case]:
    """Every protocol of every vendor with every fault that leaves an answer possible."""
    rng = np.random.default_rng(seed)
    for protocol in PROTOCOLS:
        for vendor in protocol.words:
            others = [p for p in PROTOCOLS if p.contrast is not protocol.contrast and vendor in p.words]
            for fault in Fault:
                if not _possible(protocol, fault):
                    continue
                other = others[int(rng.integers(len(others)))]
                header = _header(protocol, vendor, rng)
                _spoil(header, fault, other.words[vendor])
                yield Case(protocol=protocol, vendor=vendor, fault=fault, header=header)


def _possible(protocol: Protocol, fault: Fault) -> bool:
    if fault in (Fault.BLANK_WORDS, Fault.SWAPPED_WORDS):
        return not protocol.told_by_words
    if fault is Fault.NO_INVERSION_TIME:
        return protocol.ti is not None
    return fault is not Fault.LEFTOVER_AGENT or not protocol.agent


def _spoil(ds: Dataset, fault: Fault, other: str) -> None:
    gone: tuple[str, ...] = ()
    if fault is Fault.BLANK_WORDS:
        gone = ("SeriesDescription", "ProtocolName", "BodyPartExamined")
    elif fault is Fault.SWAPPED_WORDS:
        ds.SeriesDescription = ds.ProtocolName = other
    elif fault is Fault.OTHER_PROTOCOL:
        ds.ProtocolName = other
    elif fault is Fault.NO_INVERSION_TIME:
        gone = ("InversionTime",)
    elif fault is Fault.NO_TIMES:
        gone = ("EchoTime", "RepetitionTime", "InversionTime", "FlipAngle", "EchoTrainLength")
    elif fault is Fault.NO_SEQUENCE_TAGS:
        gone = ("ScanningSequence", "SequenceVariant", "ScanOptions", "SequenceName", "MRAcquisitionType")
        for private in [element.tag for element in ds if element.tag.is_private]:
            del ds[private]
    elif fault is Fault.LEFTOVER_AGENT:
        ds.ContrastBolusAgent = "CONTRAST"
    for name in gone:
        if name in ds:
            del ds[name]


def _draw(rng: np.random.Generator, span: Range) -> str:
    return f"{rng.uniform(*span):.4g}"


def _header(protocol: Protocol, vendor: str, rng: np.random.Generator) -> Dataset:
    ds = Dataset()
    ds.Manufacturer = vendor
    ds.MagneticFieldStrength = f"{protocol.field_t[int(rng.integers(len(protocol.field_t)))]:g}"
    ds.SeriesDescription = ds.ProtocolName = protocol.words[vendor]
    ds.BodyPartExamined = protocol.region
    ds.RepetitionTime, ds.EchoTime = _draw(rng, protocol.tr), _draw(rng, protocol.te)
    if protocol.ti is not None:
        ds.InversionTime = _draw(rng, protocol.ti)
    ds.FlipAngle, ds.EchoNumbers = _draw(rng, protocol.flip), str(protocol.echo)
    ds.EchoTrainLength = {"tse": "15", "ir": "15", "ep_se": "60", "ep_gr": "60"}.get(protocol.kind, "1")
    ds.MRAcquisitionType = "3D" if protocol.three_d else "2D"
    ds.AngioFlag = "Y" if protocol.angio and vendor == SIEMENS else "N"
    _sequence_tags(ds, protocol, vendor)
    if protocol.b is not None:
        ds.DiffusionBValue = float(protocol.b)
    if protocol.agent:
        ds.ContrastBolusAgent = ("Gadovist 7,5 ml", "DOTAREM", "gadoterate meglumine")[int(rng.integers(3))]
        ds.ContrastBolusVolume = "7.5"
    return ds


def _sequence_tags(ds: Dataset, protocol: Protocol, vendor: str) -> None:
    kind = protocol.kind
    plain = {"se": ["SE"], "tse": ["SE"], "gre": ["GR"], "ssfp": ["GR"], "ir": ["SE", "IR"], "mprage": ["GR", "IR"]}
    variant = {"tse": "SK", "ir": "SK", "gre": "SP", "mprage": "MP", "ssfp": "SS"}.get(kind, "NONE")
    options = ["FS"] if protocol.fat and protocol.contrast is not Contrast.STIR else []
    if vendor == SIEMENS:
        # Siemens names no echo for echo-planar imaging
        ds.ScanningSequence = ["EP"] if kind.startswith("ep") else plain[kind]
        ds.SequenceVariant = [variant, "OSP"]
        ds.SequenceName = protocol.pulse[vendor]
        ds.ImageType = list(protocol.image_type) or ["ORIGINAL", "PRIMARY", "M", "ND"]
    elif vendor == GE:
        ds.ScanningSequence = {"ep_se": ["EP", "SE"], "ep_gr": ["EP", "GR"], "mprage": ["GR"]}.get(kind) or plain[kind]
        if "asl" in protocol.pulse[vendor]:
            ds.ScanningSequence = ["RM"]
        ds.SequenceVariant = ["SS", "SP"] if kind in ("gre", "mprage") else variant
        options = [*options, "FAST_GEMS", "FILTERED_GEMS", *(["EPI_GEMS"] if kind.startswith("ep") else [])]
        ds.ImageType = list(protocol.image_type) or ["ORIGINAL", "PRIMARY", "OTHER"]
        ds.private_block(0x0019, "GEMS_ACQU_01", create=True).add_new(0x9C, "LO", protocol.pulse[vendor])
    else:
        # Philips calls echo-planar imaging by its echo alone; its own element tells the technique
        ds.ScanningSequence = {"ep_se": "SE", "ep_gr": "GR", "ir": "IR", "mprage": "GR"}.get(kind) or plain[kind]
        ds.SequenceVariant = variant if variant != "NONE" else "SK"
        ds.ImageType = list(protocol.image_type) or ["ORIGINAL", "PRIMARY", "M_FFE" if kind == "gre" else "M_SE", "M"]
        ds.private_block(0x2001, "Philips Imaging DD 001", create=True).add_new(0x20, "LO", protocol.pulse[vendor])
    ds.ScanOptions = options or ""
