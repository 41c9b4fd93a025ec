"""Phantom configuration: the population that is simulated, its scanners, and shortcuts planted on purpose."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from fm.config.errors import ConfigError


class Resolution(StrEnum):
    """Voxel sizes; named as YAML writes them (OmegaConf looks enums up by name)."""

    demo = "demo"
    """2–3 mm in-plane, 3–6 mm slices: a study simulates in well under a second."""
    full = "full"
    """1 mm isotropic to 0.5 × 0.5 × 6 mm, as hospitals scan."""


class Confound(StrEnum):
    """What the prevalence of lesions is tied to, on purpose."""

    none = "none"
    site = "site"
    """Every second site sees more lesions."""
    sequence = "sequence"
    """Studies whose protocol gives contrast agent or diffusion hold more lesions."""


@dataclass(kw_only=True, slots=True)
class PhantomConfig:
    """The simulated population. Shares lie between 0 and 1; ages in years."""

    resolution: Resolution = Resolution.demo
    """Voxel sizes of the scanners: demo (2–3 mm in-plane, 3–6 mm slices) or full (1 mm isotropic to 0.5 × 0.5 × 6)."""
    head_share: float = 0.65
    """Share of patients whose head is scanned; the others' abdomens are."""
    lesion_prevalence: float = 0.6
    """Share of patients with a lesion, independent of site, sequences, headers and region unless `confound` says so."""
    easy_share: float = 0.7
    """Share of lesions that are large and conspicuous; what `medium_share` leaves too is hard."""
    medium_share: float = 0.2
    """Share of lesions of middling size and contrast."""
    atrophy_prevalence: float = 0.45
    """Share of heads with atrophy grade 1 or 2; likelier with age."""
    atrophy_age_auroc: float = 0.7
    """How well age alone tells atrophy, as an AUROC: 0.5 (not at all) to below 1."""
    sinus_prevalence: float = 0.5
    """Share of heads with an opacified maxillary sinus, left or right alike."""
    sex_auroc: float = 0.85
    """How well the anatomy (head or trunk size) tells sex at best, as an AUROC."""
    age_mean_years: float = 58.0
    age_sd_years: float = 17.0
    repeat_share: float = 0.15
    """Share of patients who come again, months later."""
    missing_series_share: float = 0.05
    """Chance of each series of a protocol not to have been acquired or sent."""
    missing_slice_share: float = 0.03
    """Chance of each series to have lost one of its inner slices."""
    motion_share: float = 0.1
    """Chance of each series to show a motion artefact."""
    nonaxial_share: float = 0.1
    """Chance of each structural series to be sagittal or coronal."""
    noise_scale: float = 1.0
    """Multiplies every site's noise; 0 renders without noise."""
    bias_scale: float = 1.0
    """Multiplies every site's receive-field inhomogeneity; 0 renders without."""
    typing_share: float = 0.35
    """Share of reports with typing slips, dictation habits or shouted capitals."""
    identity_share: float = 0.5
    """Share of reports that name the patient, a date, a doctor or a number in their text."""
    confound: Confound = Confound.none
    """Plants a shortcut: ties lesion prevalence to the site or to the sequences."""
    confound_strength: float = 0.8
    """Prevalence p moves up on one side and down on the other by this times the smaller of p and 1 - p."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        self.resolution = Resolution(self.resolution)
        self.confound = Confound(self.confound)
        for name, share in (
            ("head_share", self.head_share),
            ("lesion_prevalence", self.lesion_prevalence),
            ("easy_share", self.easy_share),
            ("medium_share", self.medium_share),
            ("atrophy_prevalence", self.atrophy_prevalence),
            ("sinus_prevalence", self.sinus_prevalence),
            ("repeat_share", self.repeat_share),
            ("missing_series_share", self.missing_series_share),
            ("missing_slice_share", self.missing_slice_share),
            ("motion_share", self.motion_share),
            ("nonaxial_share", self.nonaxial_share),
            ("typing_share", self.typing_share),
            ("identity_share", self.identity_share),
            ("confound_strength", self.confound_strength),
        ):
            if not 0 <= share <= 1:
                raise ConfigError(f"phantom.{name}={share}: must be between 0 and 1")
        if self.easy_share + self.medium_share > 1 + 1e-9:
            raise ConfigError("phantom.easy_share + phantom.medium_share must not exceed 1")
        for name, auroc in (("atrophy_age_auroc", self.atrophy_age_auroc), ("sex_auroc", self.sex_auroc)):
            if not 0.5 <= auroc <= 0.99:
                raise ConfigError(f"phantom.{name}={auroc}: an AUROC between 0.5 and 0.99")
        if not 20 <= self.age_mean_years <= 90 or not 0 < self.age_sd_years <= 40:
            raise ConfigError("phantom.age_mean_years must lie in 20–90 and phantom.age_sd_years above 0, at most 40")
        if min(self.noise_scale, self.bias_scale) < 0:
            raise ConfigError("phantom.noise_scale and phantom.bias_scale must not be negative")
