"""What each engine is sent: against its own schema, with a typo planted, and against a kept copy.

``python tests/launch/cluster/test_rendering.py`` takes a wanted change over into the kept copies.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import kubeflow_trainer_api.models as kubeflow
import kubernetes_validate
import pytest
import yaml
from botocore.stub import Stubber
from moto import mock_aws

from fm.config.compose import compose
from fm.config.errors import ConfigError
from fm.config.launch import ClusterLaunch
from launch.cluster import engines, kubernetes, sagemaker
from launch.cluster.spec import JobSpec, SubmitError

GOLDEN = Path(__file__).parent / "golden"
KUBERNETES = (
    "launch=kubernetes",
    "launch.image=registry.example/fm:1",
    "launch.nodes=4",
    "launch.processes=8",
    "launch.gpus=8",
    "launch.memory_gb=512",
    "launch.namespace=imaging",
    "launch.queue=gpu",
    "launch.service_account=trainer",
    "launch.volumes=['datasets:/data','runs:/runs']",
    "launch.secrets=[WANDB_API_KEY]",
    "launch.secret=wandb",
    "launch.node_selector.pool=h200",
    "launch.tolerations=['nvidia.com/gpu:NoSchedule']",
    "launch.environment.NCCL_DEBUG=WARN",
)
SAGEMAKER = (
    "launch=sagemaker",
    "launch.image=123456789012.dkr.ecr.us-east-1.amazonaws.com/fm:1",
    "launch.nodes=2",
    "launch.processes=8",
    "launch.gpus=8",
    "launch.role=arn:aws:iam::123456789012:role/training",
    "launch.output=s3://bucket/models",
    "launch.checkpoints=s3://bucket/checkpoints",
    "launch.channels.shards=s3://bucket/shards",
    "launch.channels.scratch=fsx://fs-0123456789abcdef0/fm",
    "launch.subnets=[subnet-0123456789abcdef0]",
    "launch.security_groups=[sg-0123456789abcdef0]",
    "launch.tags.project=fm",
    "launch.spot=true",
    "launch.efa=true",
)
SLURM = (
    "launch=slurm",
    "launch.nodes=4",
    "launch.processes=8",
    "launch.gpus=8",
    "launch.cpus_per_process=12",
    "launch.partition=gpu",
    "launch.account=imaging",
    "launch.image=/images/fm.sif",
    "launch.container=apptainer",
    "launch.mounts=['/data:/data']",
    "launch.secrets=[WANDB_API_KEY]",
    "launch.environment.NCCL_DEBUG=a b",
)


def launch(*words: str) -> ClusterLaunch:
    found: ClusterLaunch = compose("submit", ["verb=pretrain", *words]).launch
    return found


def spec(*words: str, folder: Path = Path("/runs/joint vitb"), **more: Any) -> JobSpec:
    made = launch(*words)
    command = ("python", "-m", "launch.node", "/runs/joint vitb")
    return JobSpec(
        name="Joint_ViT-B", command=command, folder=folder, code="/code", launch=made, signal_lead_s=120, **more
    )


KEPT = {
    "slurm.sbatch": SLURM,
    "jobset.yaml": KUBERNETES,
    "trainjob.yaml": (*KUBERNETES, "launch.resource=trainjob"),
    "sagemaker.json": SAGEMAKER,
}


@pytest.mark.parametrize("name", KEPT)
def test_the_rendered_job_is_the_kept_one(name: str) -> None:
    assert engines.render(spec(*KEPT[name])) == (GOLDEN / name).read_text()


def unknown(mine: Any, theirs: Any, where: str = "") -> Iterator[str]:
    """Keys that a model did not keep: it does not know them."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key, value in mine.items():
            if key not in theirs:
                yield f"{where}/{key}"
            else:
                yield from unknown(value, theirs[key], f"{where}/{key}")
    elif isinstance(mine, list) and isinstance(theirs, list):
        for number, (one, other) in enumerate(zip(mine, theirs, strict=True)):
            yield from unknown(one, other, f"{where}[{number}]")


def test_the_jobset_fits_its_schema_and_a_typo_does_not() -> None:
    config, jobset = kubernetes.manifests(spec(*KUBERNETES))
    model = kubeflow.JobsetV1alpha2JobSet
    assert list(unknown(jobset, model.from_dict(jobset).to_dict())) == []
    wrong = copy.deepcopy(jobset)
    wrong["spec"]["replicatedJobs"][0]["template"]["spec"]["paralelism"] = 2
    assert list(unknown(wrong, model.from_dict(wrong).to_dict())) == [
        "/spec/replicatedJobs[0]/template/spec/paralelism"
    ]
    kubernetes_validate.validate(config, "1.31", strict=True)
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "workers"},
        "spec": jobset["spec"]["replicatedJobs"][0]["template"]["spec"],
    }
    kubernetes_validate.validate(job, "1.31", strict=True)
    job["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.31", strict=True)


def test_the_trainjob_fits_its_schema_and_a_typo_does_not() -> None:
    _, job = kubernetes.manifests(spec(*KUBERNETES, "launch.resource=trainjob"))
    model = kubeflow.TrainerV1alpha1TrainJob
    assert list(unknown(job, model.from_dict(job).to_dict())) == []
    wrong = copy.deepcopy(job)
    wrong["spec"]["trainer"]["numnodes"] = 2
    assert list(unknown(wrong, model.from_dict(wrong).to_dict())) == ["/spec/trainer/numnodes"]


def test_the_sagemaker_request_fits_botocores_model_and_a_typo_does_not() -> None:
    request = sagemaker.request(spec(*SAGEMAKER))
    sagemaker.validate(request)
    for place, key, value in (
        (request, "TrainingJobname", "x"),
        (request["ResourceConfig"], "InstanceCount", "two"),
        (request["StoppingCondition"], "MaxRuntimeInSeconds", 0),
    ):
        before = dict(place)
        place[key] = value
        with pytest.raises(SubmitError, match=key):
            sagemaker.validate(request)
        place.clear()
        place.update(before)


def test_a_sagemaker_job_is_created_and_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    (tmp_path / "run.yaml").write_text("about: {}\n")
    made = replace(spec(*SAGEMAKER), folder=tmp_path)
    with mock_aws():
        store = boto3.client("s3", region_name="us-east-1")
        store.create_bucket(Bucket="bucket")
        job = engines.submit(made)
        assert store.get_object(Bucket="bucket", Key=f"models/{made.label}/job/run.yaml")["Body"].read()
        assert engines.jobs(tmp_path) == [job]
        assert engines.state(job) in ("running", "done")
        with pytest.raises(SubmitError, match=r"SageMaker refused.*NoSuchBucket"):
            engines.submit(replace(made, launch=launch(*SAGEMAKER, "launch.output=s3://elsewhere/models")))
        assert engines.state(replace(job, id="us-east-1/none")) == "unknown"
    assert json.loads((tmp_path / "job.json").read_text())["TrainingJobName"] == made.label


def test_a_sagemaker_job_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """moto knows no StopTrainingJob; the client is real, its answer is botocore's own stub."""
    client = boto3.client("sagemaker", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
    monkeypatch.setattr(sagemaker, "_client", lambda region: client)
    with Stubber(client) as stub:
        stub.add_response("stop_training_job", {}, {"TrainingJobName": "first"})
        engines.cancel(engines.Job(engine="sagemaker", id="us-east-1/first", time=""))
        stub.assert_no_pending_responses()


def test_kubernetes_lists_secrets_by_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "very-secret")
    text = engines.render(spec(*KUBERNETES))
    assert "very-secret" not in text
    found = [entry for entry in yaml.safe_load_all(text)][1]
    pod = found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    secret = next(entry for entry in pod["containers"][0]["env"] if entry["name"] == "WANDB_API_KEY")
    assert secret["valueFrom"] == {"secretKeyRef": {"name": "wandb", "key": "WANDB_API_KEY"}}


def test_a_run_folder_that_would_be_lost_with_its_pod() -> None:
    made = launch(*KUBERNETES)
    assert not isinstance(made, str)
    kubernetes.check_folder(made, "/runs/first")  # type: ignore[arg-type]
    with pytest.raises(SubmitError, match="lies on none"):
        kubernetes.check_folder(made, "/home/runs/first")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("launch=slurm", "launch.nodes=0"), "launch.nodes=0"),
        (("launch=slurm", "launch.gpus=2", "launch.processes=4"), "GPU of its own"),
        (("launch=slurm", "launch.image=/x.sif"), "belong together"),
        (("launch=slurm", "launch.options=['licenses=x']"), "no option of sbatch"),
        (("launch=slurm", "launch.secrets=[A]", "launch.environment.A=1"), "value is never given"),
        (("launch=kubernetes",), "launch.image"),
        (("launch=kubernetes", "launch.image=x", "launch.secrets=[A]"), "launch.secret"),
        (("launch=kubernetes", "launch.image=x", "launch.volumes=[data]"), "CLAIM:/PATH"),
        (("launch=sagemaker", "launch.image=x", "launch.role=r", "launch.output=s3://b", "launch.spot=true"), "spot"),
        (("launch=sagemaker", "launch.role=r", "launch.output=s3://b"), "launch.image"),
        (("launch=slurm", "launch.partitoin=x"), "did you mean launch.partition"),
    ],
)
def test_what_no_engine_would_take(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        launch(*words)


if __name__ == "__main__":
    for kept, its_words in KEPT.items():
        (GOLDEN / kept).write_text(engines.render(spec(*its_words)))
