"""Data configuration: which shards, which batches, and what a view of a series looks like."""

from __future__ import annotations

from dataclasses import dataclass

from fm.config.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """How studies become batches. Lengths in mm of the patient, sizes in studies."""

    url: str = "???"
    """Folder or URL that holds the shards and their manifest."""
    split: str = "train"
    accept: str = ""
    """Dataset id that a resumed run may go on with though its manifest has changed."""
    global_batch_size: int = 256
    micro_batch_size: int = 16
    workers: int = 0
    """Loader processes per rank; 0 loads in the training process."""
    prefetch: int = 2
    """Micro-batches that each loader keeps ready."""
    max_bad_fraction: float = 0.05
    """Stop when more than this share of the samples read so far could not be read."""
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
    local_views: int = 2
    local_extent: float = 0.4
    local_keep: float = 1.0
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
    sentence_dropout: float = 0.1
    sentence_shuffle: bool = True
    vocabulary_size: int = 8192
    min_patients_per_word: int = 5
    """A word enters the vocabulary when the reports of at least this many patients hold it."""

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        for name, value in (
            ("global_batch_size", self.global_batch_size),
            ("micro_batch_size", self.micro_batch_size),
            ("max_series", self.max_series),
            ("global_views", self.global_views),
            ("min_patients_per_word", self.min_patients_per_word),
        ):
            if value < 1:
                raise ConfigError(f"data.{name}={value}: must be ≥ 1")
        for name, share in (
            ("global_extent", self.global_extent),
            ("global_keep", self.global_keep),
            ("local_extent", self.local_extent),
            ("local_keep", self.local_keep),
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
        ):
            if not 0 <= amount < 1:
                raise ConfigError(f"data.{name}={amount}: must be at least 0 and below 1")
        if min(self.spacing_mm, self.slice_spacing_mm) <= 0:
            raise ConfigError("data.spacing_mm and data.slice_spacing_mm must be positive")
        if min(self.workers, self.local_views, self.noise, self.position_jitter_mm) < 0 or self.prefetch < 1:
            raise ConfigError("data: workers, local_views, noise and position_jitter_mm must be ≥ 0 and prefetch ≥ 1")
        if min(self.crops_per_series, self.crop_memory_mb) < 0:
            raise ConfigError("data.crops_per_series and data.crop_memory_mb must be ≥ 0")
