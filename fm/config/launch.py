"""Where a run's processes start; this group alone holds nodes, processes and devices."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fm.config.errors import ConfigError


@dataclass(kw_only=True, slots=True)
class LaunchConfig:
    """Base of the polymorphic group `launch`; `kind` picks the subclass."""

    kind: str = "???"


@dataclass(kw_only=True, slots=True)
class LocalLaunch(LaunchConfig):
    """Processes on this machine, started by torchrun."""

    kind: str = "local"
    processes: int = 0
    """Worker processes, one per device; 0: one per GPU, without GPUs 2 (1 on a single core)."""
    threads_per_process: int = 0
    """CPU threads of each process; 0: the cores divided by the processes."""

    def __post_init__(self) -> None:
        """Refuse negative counts."""
        if self.processes < 0 or self.threads_per_process < 0:
            raise ConfigError("launch.processes and launch.threads_per_process must not be negative")


@dataclass(kw_only=True, slots=True)
class ClusterLaunch(LaunchConfig):
    """What every cluster engine is asked for; fm submit sends it."""

    kind: str = "???"
    name: str = ""
    """Name of the job; empty: the name of its folder."""
    nodes: int = 1
    processes: int = 1
    """Worker processes of each node, one per device."""
    gpus: int = 0
    """GPUs of each node; 0: CPU only."""
    cpus_per_process: int = 4
    memory_gb: int = 0
    """Memory of each node in GiB; 0: what the engine gives."""
    minutes: int = 1440
    """Longest time of one attempt; a run that needs more is saved before it ends and queued again."""
    requeues: int = 100
    """How often a job that was stopped and saved (exit code 75) may start again."""
    image: str = ""
    """Container image; empty: the environment of the submitting process, which the nodes must see."""
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables of the job, none of them secret: launch.environment.NAME=VALUE."""
    secrets: list[str] = field(default_factory=list)
    """Names of environment variables whose values the engine hands over itself; values are never written."""
    mounts: list[str] = field(default_factory=list)
    """Folders that a container sees, as SOURCE:PATH."""
    folder: str = ""
    """The run folder as the nodes see it; empty: under the same path as here."""
    port: int = 0
    """First of three TCP ports in a row on the first node at which the nodes meet; 0: from the number of Slurm's job,
    29500 on the other engines."""
    preflight: bool = True
    """Whether the nodes are checked before they train."""

    def __post_init__(self) -> None:
        """Refuse counts below their range and mounts that cannot be read."""
        for name in ("nodes", "processes", "cpus_per_process", "minutes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"launch.{name}={getattr(self, name)}: must be at least 1")
        if min(self.gpus, self.memory_gb, self.requeues) < 0:
            raise ConfigError("launch.gpus, launch.memory_gb and launch.requeues must not be negative")
        if self.gpus and self.processes > self.gpus:
            raise ConfigError(
                f"launch.processes={self.processes} on launch.gpus={self.gpus}: each process needs a GPU of its own"
            )
        if self.port and not 1024 <= self.port <= 65000:
            raise ConfigError(f"launch.port={self.port}: take one between 1024 and 65000, or 0")
        for mount in self.mounts:
            if len(mount.split(":")) != 2 or not mount.split(":")[1].startswith("/"):
                raise ConfigError(f"launch.mounts: {mount} is not SOURCE:/PATH")
        if shared := sorted(set(self.secrets) & set(self.environment)):
            raise ConfigError(
                f"launch.secrets: {shared[0]} is in launch.environment too; a secret's value is never given"
            )


class Container(StrEnum):
    """How Slurm's nodes start a container image."""

    none = "none"
    apptainer = "apptainer"
    pyxis = "pyxis"


@dataclass(kw_only=True, slots=True)
class SlurmLaunch(ClusterLaunch):
    """A batch job of Slurm that queues itself again when it was stopped and saved."""

    kind: str = "slurm"
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    exclusive: bool = False
    """Whole nodes."""
    container: Container = Container.none
    """What starts `image`; none where there is no image."""
    parallel: int = 0
    """Jobs of a sweep that may run at once; 0: as many as the cluster has room for."""
    options: list[str] = field(default_factory=list)
    """More options of sbatch, each with its dashes: ['--licenses=x:1']."""

    def __post_init__(self) -> None:
        """Refuse an image that nothing starts, and options that are none."""
        ClusterLaunch.__post_init__(self)
        if bool(self.image) != (self.container is not Container.none):
            raise ConfigError("launch.image and launch.container belong together: give both or neither")
        if self.parallel < 0:
            raise ConfigError(f"launch.parallel={self.parallel}: must not be negative")
        for option in self.options:
            if not option.startswith("--") or "\n" in option:
                raise ConfigError(f"launch.options: {option} is no option of sbatch; write --name=value")


class Resource(StrEnum):
    """The Kubernetes resource that starts the nodes together."""

    jobset = "jobset"
    """JobSet, jobset.x-k8s.io/v1alpha2."""
    trainjob = "trainjob"
    """Kubeflow TrainJob, trainer.kubeflow.org/v1alpha1."""


@dataclass(kw_only=True, slots=True)
class KubernetesLaunch(ClusterLaunch):
    """Pods of Kubernetes, started and restarted together."""

    kind: str = "kubernetes"
    resource: Resource = Resource.jobset
    namespace: str = "default"
    queue: str = ""
    """Local queue of Kueue; empty: none."""
    service_account: str = ""
    runtime: str = "torch-distributed"
    """Training runtime that a TrainJob refers to."""
    shared_memory_gb: int = 8
    """Size of /dev/shm, which loader processes need."""
    volumes: list[str] = field(default_factory=list)
    """Volume claims that every pod sees, as CLAIM:/PATH; the nodes' run folder must lie on one."""
    secret: str = ""
    """Secret object whose keys are the names in `secrets`."""
    node_selector: dict[str, str] = field(default_factory=dict)
    """Labels that the nodes must have."""
    tolerations: list[str] = field(default_factory=list)
    """Taints that are tolerated, as KEY=VALUE:EFFECT or KEY:EFFECT."""

    def __post_init__(self) -> None:
        """Refuse what no pod could run."""
        ClusterLaunch.__post_init__(self)
        if not self.image:
            raise ConfigError("launch.image: Kubernetes runs container images; build one from launch/Dockerfile")
        if self.secrets and not self.secret:
            raise ConfigError("launch.secret: name the Secret object that holds launch.secrets")
        for volume in self.volumes:
            if len(volume.split(":")) != 2 or not volume.split(":")[1].startswith("/"):
                raise ConfigError(f"launch.volumes: {volume} is not CLAIM:/PATH")
        for toleration in self.tolerations:
            if toleration.rpartition(":")[2] not in ("NoSchedule", "PreferNoSchedule", "NoExecute"):
                raise ConfigError(f"launch.tolerations: {toleration} is not KEY=VALUE:NoSchedule (or another effect)")


@dataclass(kw_only=True, slots=True)
class SageMakerLaunch(ClusterLaunch):
    """A training job of Amazon SageMaker."""

    kind: str = "sagemaker"
    region: str = "us-east-1"
    role: str = "???"
    """ARN of the role that the job takes."""
    instance: str = "ml.p5.48xlarge"
    output: str = "???"
    """s3:// folder for the model that SageMaker packs at the end."""
    checkpoints: str = ""
    """s3:// folder that the run folder is kept in; needed with spot and without a file system."""
    channels: dict[str, str] = field(default_factory=dict)
    """Input channels: NAME to s3://… (FastFile) or fsx://FILE_SYSTEM/PATH (Lustre)."""
    volume_gb: int = 200
    """Local disk of each instance."""
    spot: bool = False
    """Spot instances: cheaper, interrupted at two minutes' notice, gone on with from `checkpoints`."""
    max_wait_minutes: int = 0
    """With spot: longest time in all, waiting included; 0: twice `minutes`."""
    subnets: list[str] = field(default_factory=list)
    security_groups: list[str] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    efa: bool = False
    """Elastic Fabric Adapter between the nodes; the instance must have it."""

    def __post_init__(self) -> None:
        """Refuse what SageMaker would refuse later, or charge for in vain."""
        ClusterLaunch.__post_init__(self)
        if not self.image:
            raise ConfigError("launch.image: SageMaker runs container images of ECR; build one from launch/Dockerfile")
        if self.spot and not self.checkpoints:
            raise ConfigError("launch.spot=true needs launch.checkpoints=s3://…: an interrupted job would start anew")
        if self.secrets:
            raise ConfigError("launch.secrets: SageMaker has none; give the role the rights instead (launch.role)")
        if any(url.startswith("fsx://") for url in self.channels.values()) and not self.subnets:
            raise ConfigError("launch.channels: a file system needs launch.subnets and launch.security_groups")
        for name, url in self.channels.items():
            if not url.startswith(("s3://", "fsx://")):
                raise ConfigError(f"launch.channels.{name}={url}: give s3://… or fsx://FILE_SYSTEM/PATH")
