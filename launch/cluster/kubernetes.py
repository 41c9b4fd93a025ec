"""Kubernetes: a JobSet (or a Kubeflow TrainJob) of pods that start, fail and restart together, sent by ``kubectl``.

A pod that ends with 75 fails its Job with the reason ``PodFailurePolicy``, which restarts the whole set; any other
failure ends it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from fm.config.launch import KubernetesLaunch, Resource
from launch.cluster.spec import JobSpec, SubmitError

MANIFEST = "job.yaml"
SEED = "/fm/job"
"""Where pods see the files of the submitting machine's run folder."""
_WORKERS = "workers"
_MANAGER = "fm.io/submit"
"""Who says of himself that he changed the training runtime; Kubeflow wants a domain and a path."""
Plain = dict[str, Any]


def render(spec: JobSpec) -> str:
    """The manifests of a job as YAML: the configuration of the run, then the pods."""
    return yaml.safe_dump_all(manifests(spec), sort_keys=False, allow_unicode=True)


def manifests(spec: JobSpec) -> list[Plain]:
    """The objects of a job: a ConfigMap with the run's configuration, and a JobSet or TrainJob."""
    launch = _launch(spec)
    data = {path.name: path.read_text(encoding="utf-8") for path in spec.seed_files}
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(spec), "data": data}
    return [config, _jobset(spec, launch) if launch.resource is Resource.jobset else _trainjob(spec, launch)]


def submit(spec: JobSpec) -> str:
    """Write the manifests into the job's folder and apply them; returns ``namespace/name``.

    Raises:
        SubmitError: there is no ``kubectl``, or the cluster's own refusal.
    """
    launch = _launch(spec)
    check(launch)
    path = spec.folder / MANIFEST
    path.write_text(render(spec), encoding="utf-8")
    # The server looks at everything before it makes anything: nothing is half-submitted.
    _kubectl("apply", "--dry-run=server", "-f", str(path))
    _kubectl("apply", "-f", str(path))
    return f"{launch.namespace}/{spec.label}"


def check(launch: KubernetesLaunch) -> None:
    """Refuse, before anything is sent, what can be known to fail.

    Raises:
        SubmitError: no kubectl, or a run folder of the nodes that lies on no volume.
    """
    if shutil.which("kubectl") is None:
        raise SubmitError("launch=kubernetes: there is no kubectl here; install it and choose the cluster's context")
    if launch.secret:
        found = json.loads(_kubectl("-n", launch.namespace, "get", "secret", launch.secret, "-o", "json"))
        if missing := sorted(set(launch.secrets) - set(found.get("data", {}))):
            raise SubmitError(f"launch.secrets: the Secret {launch.secret} has no {missing[0]}")


def check_folder(launch: KubernetesLaunch, folder: str) -> None:
    """Refuse a run folder that would be lost with its pod.

    Raises:
        SubmitError: it lies on none of the volumes.
    """
    places = [volume.split(":")[1] for volume in launch.volumes]
    if not any(Path(folder).is_relative_to(place) for place in places):
        raise SubmitError(
            f"launch.folder={folder}: lies on none of launch.volumes ({', '.join(places) or 'none given'}), so it "
            "would be lost with its pod"
        )


def state(job: str) -> str:
    """A job's state: waiting, running, done, failed, or unknown where the cluster has none of this name."""
    namespace, _, name = job.partition("/")
    for kind in ("jobset", "trainjob"):
        try:
            found = json.loads(_kubectl("-n", namespace, "get", kind, name, "-o", "json"))
        except SubmitError:
            continue
        conditions = found.get("status", {}).get("conditions", [])
        true = {entry["type"] for entry in conditions if entry.get("status") == "True"}
        if true & {"Completed", "Complete"}:
            return "done"
        if "Failed" in true:
            return "failed"
        return "waiting" if "Suspended" in true or not found.get("status") else "running"
    return "unknown"


def cancel(job: str) -> None:
    """Stop a job for good."""
    namespace, _, name = job.partition("/")
    _kubectl("-n", namespace, "delete", "jobset,trainjob,configmap", name, "--ignore-not-found")


def logs(job: str) -> str:
    """What the first pod wrote."""
    namespace, _, name = job.partition("/")
    return _kubectl("-n", namespace, "logs", "-l", f"jobset.sigs.k8s.io/jobset-name={name}", "--tail=-1", "--prefix")


def _jobset(spec: JobSpec, launch: KubernetesLaunch) -> Plain:
    job = {
        "parallelism": launch.nodes,
        "completions": launch.nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": {"containerName": "fm", "operator": "In", "values": [75]}},
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": _pod(spec, launch),
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _metadata(spec),
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": launch.requeues,
                "rules": [
                    {"name": "saved", "action": "RestartJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
                    {"name": "broken", "action": "FailJobSet"},
                ],
            },
            "replicatedJobs": [{"name": _WORKERS, "replicas": 1, "template": {"spec": job}}],
        },
    }


def _trainjob(spec: JobSpec, launch: KubernetesLaunch) -> Plain:
    trainer = {
        "image": launch.image,
        "numNodes": launch.nodes,
        "numProcPerNode": launch.processes,
        "command": list(spec.command[:1]),
        "args": list(spec.command[1:]),
        "env": _environment(spec, launch),
        "resourcesPerNode": _resources(spec, launch),
    }
    mounts, volumes = _volumes(spec, launch)
    pod = {
        **_scheduling(launch),
        "terminationGracePeriodSeconds": spec.signal_lead_s,
        "volumes": volumes,
        "containers": [{"name": "node", "volumeMounts": mounts}],
    }
    node = {"name": "node", "template": {"spec": {"template": {"spec": pod}}}}
    patch = {"manager": _MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [node]}}}}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": _metadata(spec),
        "spec": {
            "runtimeRef": {"name": launch.runtime},
            "trainer": trainer,
            "runtimePatches": [patch],
        },
    }


def _pod(spec: JobSpec, launch: KubernetesLaunch) -> Plain:
    mounts, volumes = _volumes(spec, launch)
    container = {
        "name": "fm",
        "image": launch.image,
        "command": list(spec.command),
        "env": [*_environment(spec, launch), {"name": "FM_MASTER", "value": _master(spec)}],
        "resources": _resources(spec, launch),
        "volumeMounts": mounts,
    }
    return {
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": spec.signal_lead_s,
            **_scheduling(launch),
            "containers": [container],
            "volumes": volumes,
        }
    }


def _scheduling(launch: KubernetesLaunch) -> Plain:
    tolerations = []
    for text in launch.tolerations:
        taint, _, effect = text.rpartition(":")
        key, equals, value = taint.partition("=")
        match = {"operator": "Equal", "value": value} if equals else {"operator": "Exists"}
        tolerations.append({"key": key, **match, "effect": effect})
    fields: Plain = {
        "serviceAccountName": launch.service_account,
        "nodeSelector": dict(launch.node_selector),
        "tolerations": tolerations,
    }
    return {name: value for name, value in fields.items() if value}


def _environment(spec: JobSpec, launch: KubernetesLaunch) -> list[Plain]:
    plain = [{"name": name, "value": value} for name, value in spec.variables.items()]
    secret = [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": launch.secret, "key": name}}} for name in launch.secrets
    ]
    return [*plain, *secret]


def _resources(spec: JobSpec, launch: KubernetesLaunch) -> Plain:
    limits: Plain = {"cpu": str(spec.cpus)}
    if launch.memory_gb:
        limits["memory"] = f"{launch.memory_gb}Gi"
    if launch.gpus:
        limits["nvidia.com/gpu"] = str(launch.gpus)
    return {"requests": dict(limits), "limits": limits}


def _volumes(spec: JobSpec, launch: KubernetesLaunch) -> tuple[list[Plain], list[Plain]]:
    """Mounts of the container, and the volumes of the pod."""
    mounts: list[Plain] = [
        {"name": "job", "mountPath": SEED, "readOnly": True},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
    ]
    volumes: list[Plain] = [
        {"name": "job", "configMap": {"name": spec.label}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": f"{launch.shared_memory_gb}Gi"}},
    ]
    for number, volume in enumerate(launch.volumes):
        claim, path = volume.split(":")
        mounts.append({"name": f"volume-{number}", "mountPath": path})
        volumes.append({"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": claim}})
    return mounts, volumes


def _metadata(spec: JobSpec) -> Plain:
    launch = _launch(spec)
    labels = {"app.kubernetes.io/name": "fm", "app.kubernetes.io/instance": spec.label}
    if launch.queue:
        labels["kueue.x-k8s.io/queue-name"] = launch.queue
    return {"name": spec.label, "namespace": launch.namespace, "labels": labels}


def _master(spec: JobSpec) -> str:
    """Host name of the first pod, as JobSet's headless service resolves it."""
    return f"{spec.label}-{_WORKERS}-0-0.{spec.label}"


def _launch(spec: JobSpec) -> KubernetesLaunch:
    assert isinstance(spec.launch, KubernetesLaunch)
    return spec.launch


def _kubectl(*words: str) -> str:
    try:
        done = subprocess.run(["kubectl", *words], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as err:
        raise SubmitError(f"kubectl does not answer ({type(err).__name__}): is the cluster's context right?") from err
    if done.returncode:
        raise SubmitError(f"kubectl refused: {' '.join((done.stderr or done.stdout).split())}")
    return done.stdout
