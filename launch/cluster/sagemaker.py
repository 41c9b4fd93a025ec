"""Amazon SageMaker: one ``create_training_job`` request, checked against botocore's own model before it is sent.

SageMaker stops a job by SIGTERM and kills it 120 s later; a spot job starts again by itself with what lies under the
checkpoint path. A job that was saved and stopped for another reason is sent again by ``fm jobs resubmit``.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fm.config.launch import SageMakerLaunch
from launch.cluster.spec import JobSpec, SubmitError

REQUEST = "job.json"
CHECKPOINTS = "/opt/ml/checkpoints"
"""Folder that SageMaker keeps equal to ``launch.checkpoints``."""
CHANNEL = "fmjob"
"""Input channel with the configuration of the run."""
SEED = f"/opt/ml/input/data/{CHANNEL}"
STOP_LEAD_S = 120
"""Seconds between SageMaker's SIGTERM and its kill."""
_STATES = {
    "InProgress": "running",
    "Stopping": "running",
    "Completed": "done",
    "Failed": "failed",
    "Stopped": "cancelled",
}
Plain = dict[str, Any]


def render(spec: JobSpec) -> str:
    """The request of a job as JSON."""
    return json.dumps(request(spec), indent=2) + "\n"


def request(spec: JobSpec) -> Plain:
    """The arguments of ``create_training_job``."""
    launch = _launch(spec)
    seconds = launch.minutes * 60
    found: Plain = {
        "TrainingJobName": spec.label,
        "RoleArn": launch.role,
        "AlgorithmSpecification": {
            "TrainingImage": launch.image,
            "TrainingInputMode": "FastFile",
            "ContainerEntrypoint": list(spec.command[:1]),
            "ContainerArguments": list(spec.command[1:]),
        },
        "InputDataConfig": [
            _channel(CHANNEL, _seed_url(spec), launch, "File"),
            *(_channel(name, url, launch, "FastFile") for name, url in sorted(launch.channels.items())),
        ],
        "OutputDataConfig": {"S3OutputPath": launch.output},
        "ResourceConfig": {
            "InstanceType": launch.instance,
            "InstanceCount": launch.nodes,
            "VolumeSizeInGB": launch.volume_gb,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": seconds},
        "Environment": {**spec.variables, **({"FI_PROVIDER": "efa"} if launch.efa else {})},
        "EnableManagedSpotTraining": launch.spot,
        "Tags": [{"Key": key, "Value": value} for key, value in sorted(launch.tags.items())],
    }
    if launch.spot:
        wait = launch.max_wait_minutes * 60 or 2 * seconds
        found["StoppingCondition"]["MaxWaitTimeInSeconds"] = wait
    if launch.checkpoints:
        found["CheckpointConfig"] = {
            "S3Uri": f"{launch.checkpoints.rstrip('/')}/{spec.label}",
            "LocalPath": CHECKPOINTS,
        }
    if launch.subnets:
        found["VpcConfig"] = {"Subnets": launch.subnets, "SecurityGroupIds": launch.security_groups}
    return found


def validate(arguments: Plain) -> None:
    """Check a request against the service model that botocore carries: names, types, ranges; nothing is sent.

    Raises:
        SubmitError: botocore is missing, or its own words on what is wrong.
    """
    if find_spec("boto3") is None:
        raise SubmitError('launch=sagemaker needs boto3: pip install -e ".[sagemaker]" -c constraints.txt')
    import botocore.loaders
    import botocore.model
    from botocore.validate import ParamValidator

    model = botocore.loaders.Loader().load_service_model("sagemaker", "service-2")
    shape = botocore.model.ServiceModel(model).operation_model("CreateTrainingJob").input_shape
    if shape is None or (report := ParamValidator().validate(arguments, shape)).has_errors():
        raise SubmitError(f"SageMaker would refuse this job: {' '.join(report.generate_report().split())}")


def submit(spec: JobSpec) -> str:
    """Upload the run's configuration and create the job; returns ``region/name``.

    Raises:
        SubmitError: what :func:`validate` finds, or SageMaker's own refusal.
    """
    launch = _launch(spec)
    arguments = request(spec)
    validate(arguments)
    (spec.folder / REQUEST).write_text(render(spec), encoding="utf-8")
    import boto3
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = _seed_url(spec).removeprefix("s3://").partition("/")
    try:
        store = boto3.client("s3", region_name=launch.region)
        for path in spec.seed_files:
            store.upload_file(str(path), bucket, f"{prefix}/{path.name}")
        boto3.client("sagemaker", region_name=launch.region).create_training_job(**arguments)
    except (Boto3Error, BotoCoreError, ClientError, OSError) as err:
        raise SubmitError(f"SageMaker refused: {' '.join(str(err).split())}") from err
    return f"{launch.region}/{spec.label}"


def state(job: str) -> str:
    """A job's state: running, done, failed, cancelled, or unknown."""
    region, _, name = job.partition("/")
    try:
        found = _client(region).describe_training_job(TrainingJobName=name)
    except SubmitError:
        raise
    except Exception:
        return "unknown"
    return _STATES.get(str(found.get("TrainingJobStatus")), "unknown")


def cancel(job: str) -> None:
    """Stop a job for good."""
    region, _, name = job.partition("/")
    _client(region).stop_training_job(TrainingJobName=name)


def logs(job: str) -> str:
    """Where the job's logs are, as the command that reads them."""
    region, _, name = job.partition("/")
    return f"aws logs tail /aws/sagemaker/TrainingJobs --region {region} --log-stream-name-prefix {name} --since 1d\n"


def unique(name: str) -> str:
    """A name that SageMaker has not seen: it never forgets one."""
    return f"{name[:40]}-{datetime.now(UTC).strftime('%Y%m%d%H%M%S')}"


def nodes_folder(launch: SageMakerLaunch, name: str) -> str:
    """The run folder as the instances see it, where ``launch.folder`` does not say."""
    return launch.folder or str(Path(CHECKPOINTS) / name)


def _channel(name: str, url: str, launch: SageMakerLaunch, mode: str) -> Plain:
    if url.startswith("fsx://"):
        system, _, path = url.removeprefix("fsx://").partition("/")
        source: Plain = {
            "FileSystemDataSource": {
                "FileSystemId": system,
                "FileSystemType": "FSxLustre",
                "FileSystemAccessMode": "rw",
                "DirectoryPath": f"/{path}",
            }
        }
        return {"ChannelName": name, "DataSource": source}
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": url, "S3DataDistributionType": "FullyReplicated"}}
    return {"ChannelName": name, "DataSource": source, "InputMode": mode}


def _seed_url(spec: JobSpec) -> str:
    return f"{_launch(spec).output.rstrip('/')}/{spec.label}/job"


def _client(region: str) -> Any:
    if find_spec("boto3") is None:
        raise SubmitError('launch=sagemaker needs boto3: pip install -e ".[sagemaker]" -c constraints.txt')
    import boto3

    return boto3.client("sagemaker", region_name=region)


def _launch(spec: JobSpec) -> SageMakerLaunch:
    assert isinstance(spec.launch, SageMakerLaunch)
    return spec.launch
