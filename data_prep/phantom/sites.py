"""Hospitals with their scanners, and the sequences and protocols they run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.phantom.signal import Kind, Sequence, Weighting


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One scanner in one hospital."""

    code: str
    institution: str
    address: str
    vendor: str
    """Manufacturer as the vendor writes it in the header."""
    model: str
    software: str
    field_t: float
    demo_mm: tuple[float, float]
    """In-plane spacing and slice spacing at demo resolution."""
    full_mm: tuple[float, float]
    """The same at full resolution."""
    snr: float
    """Signal of white matter (or liver) over the noise."""
    bias: float
    """Standard deviation of the logarithm of the receive field."""
    gain: float
    """Stored units of white matter's signal."""
    slope: float = 1.0
    """Rescale slope of the stored values."""
    abdomen: bool = True
    downwards: bool = False
    """Whether slices are numbered from head to foot."""


SITES = (
    Site(
        code="ALST", institution="Klinikum Alstertal", address="Uferweg 3, Nordstadt", vendor="SIEMENS",
        model="Prisma_fit", software="syngo MR E11", field_t=3.0, demo_mm=(2.0, 5.0), full_mm=(1.0, 1.0),
        snr=42.0, bias=0.17, gain=420.0,
    ),
    Site(
        code="BROW", institution="Brookwater General", address="12 Mill Lane, Brookwater", vendor="GE MEDICAL SYSTEMS",
        model="Optima MR450w", software="DV26.0_R03", field_t=1.5, demo_mm=(2.5, 5.0), full_mm=(0.5, 6.0),
        snr=30.0, bias=0.09, gain=900.0, downwards=True,
    ),
    Site(
        code="CARE", institution="Hospital San Telmo", address="Calle Mayor 40, Villaluz", vendor="Philips",
        model="Ingenia", software="5.7.1", field_t=3.0, demo_mm=(2.2, 4.5), full_mm=(0.6, 4.0),
        snr=38.0, bias=0.15, gain=260.0, slope=1.7,
    ),
    Site(
        code="DUNE", institution="Dunhaven Imaging", address="1 Harbour Road, Dunhaven", vendor="SIEMENS",
        model="Aera", software="syngo MR E11", field_t=1.5, demo_mm=(2.5, 6.0), full_mm=(0.7, 5.0),
        snr=28.0, bias=0.08, gain=310.0,
    ),
    Site(
        code="EICH", institution="Radiologie Eichenau", address="Marktplatz 9, Eichenau", vendor="GE MEDICAL SYSTEMS",
        model="DISCOVERY MR750", software="DV25.1_R02", field_t=3.0, demo_mm=(2.0, 6.0), full_mm=(0.5, 5.0),
        snr=40.0, bias=0.19, gain=1500.0,
    ),
    Site(
        code="FJOR", institution="Fjordland Bedside Unit", address="Havnegata 2, Fjordby", vendor="Hyperfine",
        model="Swoop", software="rc8.7.0", field_t=0.064, demo_mm=(3.0, 5.0), full_mm=(1.6, 5.0),
        snr=13.0, bias=0.04, gain=150.0, abdomen=False,
    ),
    Site(
        code="GOTO", institution="Gotoh Memorial Hospital", address="4-7 Midori, Kitano", vendor="TOSHIBA",
        model="Vantage Titan", software="V6.0", field_t=1.5, demo_mm=(2.8, 5.5), full_mm=(0.8, 6.0),
        snr=25.0, bias=0.10, gain=2200.0,
    ),
    Site(
        code="HAMR", institution="Hammerfelt University Hospital", address="Ringvej 77, Hammerfelt", vendor="Philips",
        model="Achieva", software="5.3.0", field_t=1.5, demo_mm=(2.4, 3.5), full_mm=(0.9, 3.0),
        snr=27.0, bias=0.09, gain=520.0, slope=0.8, downwards=True,
    ),
)  # fmt: skip

W = Weighting
HEAD_PROTOCOLS: tuple[tuple[float, tuple[Weighting, ...]], ...] = (
    (0.20, (W.T1W, W.T2W, W.FLAIR)),
    (0.15, (W.T2W, W.FLAIR)),
    (0.12, (W.T1W, W.FLAIR, W.T1W_C)),
    (0.12, (W.T1W, W.T2W, W.FLAIR, W.T1W_C)),
    (0.13, (W.T2W, W.FLAIR, W.DWI, W.ADC)),
    (0.08, (W.FLAIR, W.DWI)),
    (0.08, (W.T1W, W.T2W)),
    (0.05, (W.PD, W.T2W)),
    (0.04, (W.FLAIR,)),
    (0.03, (W.T2W,)),
)
"""Shares and series of head protocols."""

ABDOMEN_PROTOCOLS: tuple[tuple[float, tuple[Weighting, ...]], ...] = (
    (0.30, (W.T1W, W.T2W)),
    (0.30, (W.T1W, W.T2W, W.T1W_C)),
    (0.15, (W.T2W, W.T1W_C)),
    (0.15, (W.T2W, W.DWI, W.ADC)),
    (0.10, (W.T2W,)),
)


def draw_protocol(rng: np.random.Generator, site: Site, head: bool) -> tuple[Weighting, ...]:
    """A protocol that the site's scanner runs; bedside scanners give no contrast agent."""
    table = [
        (share, series)
        for share, series in (HEAD_PROTOCOLS if head else ABDOMEN_PROTOCOLS)
        if site.field_t > 0.5 or W.T1W_C not in series
    ]
    shares = np.array([share for share, _ in table])
    return table[int(rng.choice(len(table), p=shares / shares.sum()))][1]


def sequence(site: Site, weighting: Weighting, head: bool) -> Sequence:
    """The timing with which a site acquires a contrast; it is the site's habit, the same for all its patients."""
    # T1w is repeated unchanged after contrast agent, and ADC maps carry the timing of their diffusion series.
    habit = {W.T1W_C: W.T1W, W.ADC: W.DWI}.get(weighting, weighting)
    rng = np.random.default_rng([sum(site.code.encode()), list(W).index(habit), int(head)])
    low_field = site.field_t < 0.5
    jitter = float(rng.uniform(0.92, 1.08))
    if weighting in (W.T1W, W.T1W_C):
        return _t1_weighted(rng, weighting, low_field, head, jitter)
    if weighting is W.FLAIR:
        return Sequence(
            weighting=weighting, kind=Kind.INVERSION_RECOVERY, repetition_ms=round(9000 * jitter),
            echo_ms=round(float(rng.uniform(95, 125))), inversion_ms=round(float(rng.uniform(2380, 2560))),
            flip_deg=150.0,
        )  # fmt: skip
    if weighting in (W.DWI, W.ADC):
        return Sequence(
            weighting=weighting, kind=Kind.DIFFUSION, repetition_ms=round(float(rng.uniform(4500, 6500))),
            echo_ms=round(float(rng.uniform(70, 95))), b_values=(0, 1000),
        )  # fmt: skip
    if weighting is W.PD:
        return Sequence(
            weighting=weighting, kind=Kind.SPIN_ECHO, repetition_ms=round(3000 * jitter), echo_ms=round(18 * jitter)
        )
    echo = (150 if low_field else 100 if head else 85) * jitter
    return Sequence(weighting=weighting, kind=Kind.SPIN_ECHO, repetition_ms=round(4500 * jitter), echo_ms=round(echo))


def _t1_weighted(
    rng: np.random.Generator, weighting: Weighting, low_field: bool, head: bool, jitter: float
) -> Sequence:
    agent = weighting is W.T1W_C
    if low_field:
        # At 0.064 T white and grey T1 hardly differ: bedside scanners prepare T1w with an inversion.
        return Sequence(
            weighting=weighting, kind=Kind.INVERSION_RECOVERY, repetition_ms=1500.0, echo_ms=6.0, inversion_ms=380.0,
            agent=agent,
        )  # fmt: skip
    if not head:
        return Sequence(
            weighting=weighting, kind=Kind.GRADIENT_ECHO, repetition_ms=round(150 * jitter), echo_ms=2.3,
            flip_deg=70.0, agent=agent,
        )  # fmt: skip
    if rng.random() < 0.5:
        return Sequence(
            weighting=weighting, kind=Kind.GRADIENT_ECHO, repetition_ms=round(8.2 * jitter, 2), echo_ms=3.1,
            flip_deg=18.0, agent=agent,
        )  # fmt: skip
    return Sequence(
        weighting=weighting, kind=Kind.SPIN_ECHO, repetition_ms=round(520 * jitter), echo_ms=round(10 * jitter, 1),
        agent=agent,
    )  # fmt: skip


def description(site: Site, weighting: Weighting, plane: str, head: bool) -> str:
    """Series description in the manner of the vendor; vendors and sites name the same thing differently."""
    words = {
        "SIEMENS": ("t1_se", "t2_tse", "t2_flair", "pd_tse", "t1_se_KM", "ep2d_diff_b0_1000", "ep2d_diff_ADC"),
        "GE MEDICAL SYSTEMS": ("T1 FSE", "T2 PROPELLER", "T2 FLAIR", "PD FSE", "T1 FSE +C", "DWI B1000", "ADC map"),
        "Philips": ("T1W_SE", "T2W_TSE", "FLAIR_longTR", "PDW_TSE", "T1W_SE_Gd", "DWI_SSh", "dADC"),
        "Hyperfine": ("T1 (Standard)", "T2", "FLAIR", "PD", "T1 Gd", "DWI", "DWI ADC"),
        "TOSHIBA": ("SE T1", "FSE2D T2", "FLAIR FSE", "FSE PD", "SE T1 CE", "DWI SE_EPI", "ADC"),
    }[site.vendor]
    order = (W.T1W, W.T2W, W.FLAIR, W.PD, W.T1W_C, W.DWI, W.ADC)
    short = {"axial": "tra", "sagittal": "sag", "coronal": "cor"}
    long = {"axial": "Ax", "sagittal": "Sag", "coronal": "Cor"}
    word = words[order.index(weighting)]
    if site.vendor == "SIEMENS":
        return f"{word}_{short[plane]}" + ("" if head else "_bh")
    return f"{long[plane]} {word}" + ("" if head else " BH")
