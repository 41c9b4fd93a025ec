"""Data configuration: which shards, which batches, and what a view of a series looks like."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fm.config.errors import ConfigError


class Order(StrEnum):
    """How studies follow each other."""

    shuffled = "shuffled"
    """All of them anew in every epoch, each by ranged reads."""
    stream = "stream"
    """Shard after shard, shuffled within a buffer and read in one sweep: for stores that seek slowly."""


class Sections(StrEnum):
    """Which text of a report an image is matched with."""

    joined = "joined"
    """Findings and impression as one text."""
    drawn = "drawn"
    """One of the two, drawn anew for each visit: separate texts of the same study."""


class Place(StrEnum):
    """Where pointwise augmentation is computed."""

    worker = "worker"
    """By the loader."""
    device = "device"
    """Where the model is; the numbers are drawn by the loader, and the views are the same to float rounding."""


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """How studies become batches. Lengths in mm of the patient, sizes in studies."""

    url: str = "???"
    """Folder or URL that holds the shards and their manifest."""
    split: str = "train"
    accept: str = ""
    """Dataset id that a resumed run may go on with though its manifest has changed."""
    order: Order = Order.shuffled
    """stream reads shard after shard and shuffles within stream_buffer, for stores that seek slowly."""
    stream_buffer: int = 1024
    """Studies that are shuffled together in stream order; each loader process holds its share of two buffers, encoded.
    """
    weight_label: str = ""
    """Label that says how often a study is drawn against others; 1 where it is missing, '' weighs all alike."""
    region_temperature: float = 1.0
    """Body regions of n studies are drawn in proportion to n^(1/temperature): 1 as they come, large ones all alike."""
    site_label: str = "site"
    """Label that names a study's site."""
    site_temperature: float = 1.0
    """The same for sites; weights of study, region and site multiply."""
    contrast_weights: dict[str, float] = field(default_factory=dict)
    """Odds of a contrast, e.g. {flair: 2}, where a study has more than max_series series; 1 where not named."""
    global_batch_size: int = 256
    micro_batch_size: int = 16
    workers: int = 0
    """Loader processes per rank; 0 loads in the training process."""
    prefetch: int = 2
    """Micro-batches that each loader keeps ready."""
    max_bad_fraction: float = 0.05
    """Stop when more than this share of the samples read so far, of at least 20, could not be read; 0 stops at the
    first."""
    connections: int = 16
    """Ranged reads from object storage at the same time, per loader process."""
    read_attempts: int = 5
    """How often a ranged read from object storage is tried; missing files and refused access are not tried again."""
    read_wait_s: float = 0.5
    """Longest wait before the second attempt; it doubles with each further one."""
    cache_dir: str = ""
    """Folder on a local disk that keeps what was read from object storage; '' keeps nothing."""
    cache_gb: float = 20.0
    """Size of that folder, in 10⁹ bytes; the least recently used goes first."""
    max_series: int = 4
    """Series drawn per study and step."""
    spacing_mm: float = 1.0
    """In-plane spacing that views are resampled to."""
    slice_spacing_mm: float = 4.0
    """Thinner slices are averaged, in whole numbers, towards this spacing; thicker ones stay as they are."""
    min_tissue: float = 0.05
    """Share of a patch's voxels that must hold tissue for it to become a token."""
    global_views: int = 2
    global_extent: float = 0.7
    """Smallest share of each axis of the foreground box that a global crop covers."""
    global_keep: float = 1.0
    """Share of a global view's tokens that are kept, drawn at random."""
    global_mm: float = 0.0
    """Edge of a global crop in mm on every axis, where the foreground box is longer; 0 goes by global_extent."""
    global_overlap: float = 0.0
    """Share of the shorter edge, on each axis, that every further global crop has in common with the first; 0 places
    them at random."""
    local_views: int = 2
    local_extent: float = 0.4
    local_mm: float = 0.0
    """The same for local crops; 0 goes by local_extent."""
    local_inside: bool = False
    """Whether every local crop lies inside one of the global crops."""
    local_keep: float = 1.0
    cross_sequence: bool = False
    """Whether the crops of a study's series that share a frame of reference lie at the same place in the patient, with
    positions from one origin, so that views of different sequences show the same anatomy."""
    crops_per_series: int = 0
    """Different crops of a series and view in a whole run, drawn once and kept in memory, while gain, noise, offset and
    dropped tokens change every time; 0 draws every crop anew. For data that fits in memory, where drawing is slow."""
    crop_memory_mb: int = 1024
    """Kept crops of one loading process; the least recently used go first."""
    spacing_jitter: float = 0.1
    """Views are scaled by up to this share, the same on all axes; the spacing that the model is told says so."""
    position_jitter_mm: float = 5.0
    gain: float = 0.2
    gamma: float = 0.3
    noise: float = 0.05
    """Largest standard deviation of added Gaussian noise, in units of the normalised range."""
    augment_on: Place = Place.worker
    """Where gain and noise are computed, and a bias field that no other effect follows. Gamma comes before resampling,
    and the other effects mix neighbours: they stay with the loader. A view of 2²⁰ voxels or more does altogether."""
    effect_share: float = 0.5
    """Share of the crops that each of the effects below is put on, apart from the others; each is off by default."""
    bias_field: float = 0.0
    """Largest coefficient of the polynomial of third order whose exponential multiplies the crop; torchio has 0.5."""
    blur_mm: float = 0.0
    """Largest standard deviation of an in-plane Gaussian blur."""
    ghosting: float = 0.0
    """Largest share of every n-th phase-encoding line that is lost, for 4 to 10 ghosts."""
    low_resolution: float = 1.0
    """Largest factor by which in-plane voxels grow."""
    low_field_t: float = 0.0
    """Lowest field strength that is imitated, down from 1.5 T, by larger voxels and Rician noise; 0 is off."""
    acceleration: float = 1.0
    """Largest factor by which phase-encoding lines of k-space are left out, its middle excepted."""
    report_sections: Sections = Sections.joined
    """drawn gives findings and impression as separate texts, one of them at each visit; a report that has only one
    gives that."""
    sentence_dropout: float = 0.1
    sentence_shuffle: bool = True
    vocabulary_size: int = 8192
    min_patients_per_word: int = 5
    """A word enters the vocabulary when the reports of at least this many patients hold it."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        self.order = Order(self.order)
        self.report_sections = Sections(self.report_sections)
        self.augment_on = Place(self.augment_on)
        for name, value in (
            ("global_batch_size", self.global_batch_size),
            ("micro_batch_size", self.micro_batch_size),
            ("max_series", self.max_series),
            ("global_views", self.global_views),
            ("min_patients_per_word", self.min_patients_per_word),
            ("connections", self.connections),
            ("read_attempts", self.read_attempts),
            ("stream_buffer", self.stream_buffer),
        ):
            if value < 1:
                raise ConfigError(f"data.{name}={value}: must be ≥ 1")
        for name, share in (
            ("global_extent", self.global_extent),
            ("global_keep", self.global_keep),
            ("local_extent", self.local_extent),
            ("local_keep", self.local_keep),
            ("effect_share", self.effect_share),
        ):
            if not 0 < share <= 1:
                raise ConfigError(f"data.{name}={share}: must be above 0 and at most 1")
        for name, amount in (
            ("min_tissue", self.min_tissue),
            ("spacing_jitter", self.spacing_jitter),
            ("gain", self.gain),
            ("gamma", self.gamma),
            ("sentence_dropout", self.sentence_dropout),
            ("max_bad_fraction", self.max_bad_fraction),
            ("ghosting", self.ghosting),
        ):
            if not 0 <= amount < 1:
                raise ConfigError(f"data.{name}={amount}: must be at least 0 and below 1")
        if min(self.spacing_mm, self.slice_spacing_mm) <= 0:
            raise ConfigError("data.spacing_mm and data.slice_spacing_mm must be positive")
        if min(self.workers, self.local_views, self.noise, self.position_jitter_mm) < 0 or self.prefetch < 1:
            raise ConfigError("data: workers, local_views, noise and position_jitter_mm must be ≥ 0 and prefetch ≥ 1")
        if min(self.crops_per_series, self.crop_memory_mb) < 0:
            raise ConfigError("data.crops_per_series and data.crop_memory_mb must be ≥ 0")
        if not 0 <= self.global_overlap <= 1 or min(self.global_mm, self.local_mm) < 0:
            raise ConfigError("data: global_overlap must be 0 to 1, and global_mm and local_mm ≥ 0")
        if min(self.bias_field, self.blur_mm) < 0 or min(self.low_resolution, self.acceleration) < 1:
            raise ConfigError("data: bias_field and blur_mm must be ≥ 0, low_resolution and acceleration ≥ 1")
        if not 0 <= self.low_field_t <= 1.5:
            raise ConfigError(f"data.low_field_t={self.low_field_t}: must be 0 (off) to 1.5 T")
        self._check_weights()
        if min(self.read_wait_s, self.cache_gb) < 0:
            raise ConfigError("data.read_wait_s and data.cache_gb must be ≥ 0")

    def _check_weights(self) -> None:
        if min(self.region_temperature, self.site_temperature, *self.contrast_weights.values()) <= 0:
            raise ConfigError("data: region_temperature, site_temperature and contrast_weights must be positive")
        weighted = self.weight_label or self.region_temperature != 1 or self.site_temperature != 1
        if self.order is Order.stream and weighted:
            raise ConfigError(
                "data.order=stream takes studies as they lie in the shards: it goes without weight_label, "
                "region_temperature and site_temperature"
            )
