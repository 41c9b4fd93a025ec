"""How a training run computes, saves and ends; the topology (nodes, processes) is in the launch group.

Enum members are named as YAML writes them: OmegaConf looks enums up by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum

from fm.config.errors import ConfigError


class Precision(StrEnum):
    """Number format of the student inside the engine; the masters and the teacher are always float32."""

    auto = "auto"
    """bf16 where the hardware multiplies it natively, else fp32."""
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
    """With dynamic loss scaling, for GPUs without bf16; on CUDA only."""


class Offload(StrEnum):
    """Where ZeRO keeps what the device has no room for."""

    none = "none"
    cpu = "cpu"
    """In host memory."""
    nvme = "nvme"
    """In files under `trainer.nvme_path`; parameters only."""


class Device(StrEnum):
    """Where the workers compute."""

    auto = "auto"
    """CUDA where it is available, else the CPU."""
    cpu = "cpu"
    cuda = "cuda"


class Resume(StrEnum):
    """What a run does with the checkpoints that its folder holds."""

    auto = "auto"
    """Go on from the newest good checkpoint; start afresh only where none was ever committed."""
    required = "required"
    """Go on from the newest good checkpoint, or fail."""


class Better(Enum):  # no StrEnum: `lower` is a method of every text
    """Which of two values of a gauge is the better one."""

    higher = "higher"
    lower = "lower"


class Weights(StrEnum):
    """Which of the two networks an export holds."""

    teacher = "teacher"
    student = "student"


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    """DeepSpeed stage and precision, checkpoints, logging."""

    stage: int = 2
    """DeepSpeed ZeRO stage: 0 replicates, 1 shards optimiser states, 2 gradients too, 3 parameters and teacher too."""
    precision: Precision = Precision.auto
    offload_optimizer: Offload = Offload.none
    """Where masters and moments live; with cpu the CPU steps. From stage 1 on."""
    offload_parameters: Offload = Offload.none
    """Where a rank's share of the parameters waits until it is needed; at stage 3."""
    nvme_path: str = ""
    """Folder on each node's own fast disk for parameters that are offloaded to nvme; worth nothing after the run."""
    device: Device = Device.auto
    deterministic: bool = False
    """Only deterministic kernels: a resumed run then repeats an uninterrupted one bit for bit."""
    checkpoint_every_steps: int = 200
    keep_last: int = 2
    """Committed checkpoints to keep; older ones are deleted."""
    keep_every_steps: int = 0
    """Checkpoints at multiples of this are never deleted; 0: none is kept for good."""
    keep_best: int = 0
    """The best checkpoints by best_metric to keep beside those; 0: none."""
    best_metric: str = "probe_retrieval_r5"
    """A number of metrics.jsonl; a checkpoint is judged by the row of its own step."""
    best_is: Better = Better.higher
    checkpoint_url: str = ""
    """Folder or URL for the checkpoints, e.g. s3://bucket/runs/x, with what else the run needs to go on elsewhere; ""
    is the run folder. It stays the same for the whole run."""
    probe_every_steps: int = 0
    """Steps between probes of the teacher on studies that are not trained on; 0: none."""
    probe_split: str = "val"
    """Split of the studies to probe. Chosen by the test split, the best checkpoint would flatter its evaluation."""
    probe_studies: int = 256
    """The first so many of the split, in an order drawn once by their keys."""
    probe_label: str = ""
    """Label whose classes the nearest neighbours are to name; "": retrieval alone is probed."""
    resume: Resume = Resume.auto
    log_every_steps: int = 1
    """Steps between rows of metrics.jsonl."""
    max_bad_steps: int = 20
    """Skipped steps in a row (loss or gradient not finite, or a spike) after which the run stops."""
    spike_sigma: float = 6.0
    """A step is skipped when its loss is this many standard deviations above the mean of the last ones; 0: never."""
    spike_window: int = 100
    """Losses that the spike guard looks back on; before there are so many it skips nothing."""
    hang_timeout_s: int = 300
    """Seconds without any progress after which the run ends with the stacks of all ranks; 0: wait for ever."""
    collective_timeout_s: int = 600
    """Seconds after which a collective that a lost rank never joins raises an error."""
    signal_lead_s: int = 120
    """Seconds between a stop signal and the kill that follows: the time there is to save."""
    profile_steps: list[int] = field(default_factory=list)
    """First and last step of a Chrome trace of each rank, e.g. [10,20]; empty: none."""
    device_tflops: float = 0.0
    """Peak TFLOP/s of one device, of which the MFU is a share; 0: known for common GPUs, else no MFU."""
    export_weights: Weights = Weights.teacher

    def __post_init__(self) -> None:
        """Refuse combinations that cannot train.

        ZeRO-0 with bf16 keeps no float32 masters (the weights drift; 17 % off after 10 steps), so it is refused.
        """
        if self.stage not in (0, 1, 2, 3):
            raise ConfigError(f"trainer.stage={self.stage}: ZeRO has the stages 0, 1, 2 and 3")
        if self.stage == 0 and self.precision in (Precision.bf16, Precision.fp16):
            raise ConfigError(
                f"trainer.stage=0 with trainer.precision={self.precision} has no float32 master weights: "
                "use trainer.stage=1, 2 or 3, or trainer.precision=fp32"
            )
        if self.precision is Precision.fp16 and self.device is Device.cpu:
            raise ConfigError("trainer.precision=fp16 needs CUDA: on the CPU use trainer.precision=bf16 or fp32")
        self._check_offload()
        for name, count in (
            ("checkpoint_every_steps", self.checkpoint_every_steps),
            ("keep_last", self.keep_last),
            ("log_every_steps", self.log_every_steps),
            ("max_bad_steps", self.max_bad_steps),
            ("collective_timeout_s", self.collective_timeout_s),
            ("signal_lead_s", self.signal_lead_s),
            ("probe_studies", self.probe_studies),
        ):
            if count < 1:
                raise ConfigError(f"trainer.{name}={count}: must be at least 1")
        if min(self.keep_every_steps, self.hang_timeout_s, self.spike_sigma, self.device_tflops) < 0:
            raise ConfigError(
                "trainer: keep_every_steps, hang_timeout_s, spike_sigma and device_tflops must not be negative"
            )
        self._check_probe()
        if self.spike_window < 2:
            raise ConfigError(f"trainer.spike_window={self.spike_window}: a standard deviation needs at least 2 losses")
        steps = self.profile_steps
        if steps and not (len(steps) == 2 and 1 <= steps[0] <= steps[1]):
            raise ConfigError(f"trainer.profile_steps={list(steps)}: give the first and the last step, e.g. [10,20]")

    def _check_probe(self) -> None:
        """Probes that would be lost: at steps without a row of metrics, or without a checkpoint to choose by them."""
        if min(self.keep_best, self.probe_every_steps) < 0:
            raise ConfigError("trainer: keep_best and probe_every_steps must not be negative")
        if self.probe_every_steps % self.log_every_steps:
            raise ConfigError(
                f"trainer.probe_every_steps={self.probe_every_steps} must be a multiple of "
                f"trainer.log_every_steps={self.log_every_steps}: a probe stands in the row of its step"
            )
        if self.keep_best and not self.best_metric:
            raise ConfigError(f"trainer.keep_best={self.keep_best} needs trainer.best_metric")
        if self.keep_best and self.best_metric.startswith("probe_"):
            every = self.probe_every_steps
            if not every or every % self.checkpoint_every_steps:
                raise ConfigError(
                    f"trainer.keep_best={self.keep_best} by {self.best_metric} needs trainer.probe_every_steps to be a "
                    f"multiple of trainer.checkpoint_every_steps={self.checkpoint_every_steps}, not {every}"
                )

    def _check_offload(self) -> None:
        if self.offload_optimizer is not Offload.none and self.stage == 0:
            raise ConfigError("trainer.offload_optimizer needs a sharded optimiser: use trainer.stage=1, 2 or 3")
        if self.offload_optimizer is Offload.nvme:
            raise ConfigError(
                "trainer.offload_optimizer=nvme: checkpoints are taken of masters and moments in memory; use cpu"
            )
        if self.stage < 3 and self.offload_parameters is not Offload.none:
            raise ConfigError(f"trainer.offload_parameters needs trainer.stage=3, not {self.stage}")
        if self.offload_parameters is Offload.nvme and not self.nvme_path:
            raise ConfigError(
                "trainer.offload_parameters=nvme needs trainer.nvme_path: a folder on each node's own disk"
            )
