"""Which node this is, by the variables that each engine sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.cluster.place import Place, PlaceError, find_place


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (
            {"SLURM_NODEID": "1", "SLURM_NNODES": "2", "FM_MASTER": "node1", "FM_PORT": "30000"},
            Place(engine="slurm", nodes=2, rank=1, master="node1", port=30000),
        ),
        (
            {"JOB_COMPLETION_INDEX": "0", "FM_NODES": "4", "FM_MASTER": "x-workers-0-0.x"},
            Place(engine="kubernetes", nodes=4, rank=0, master="x-workers-0-0.x"),
        ),
        (
            {
                "JOB_COMPLETION_INDEX": "1",
                "PET_NODE_RANK": "1",
                "PET_NNODES": "2",
                "PET_MASTER_ADDR": "x-node-0-0.x",
                "PET_MASTER_PORT": "29400",
            },
            Place(engine="kubernetes", nodes=2, rank=1, master="x-node-0-0.x", port=29400),
        ),
    ],
)
def test_places(environment: dict[str, str], expected: Place) -> None:
    assert find_place(environment) == expected


def test_sagemaker_orders_its_hosts(tmp_path: Path) -> None:
    path = tmp_path / "resourceconfig.json"
    path.write_text(json.dumps({"current_host": "algo-2", "hosts": ["algo-2", "algo-1"]}))
    assert find_place({"FM_SAGEMAKER_CONFIG": str(path)}) == Place(engine="sagemaker", nodes=2, rank=1, master="algo-1")


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "no Slurm, Kubernetes or SageMaker"),
        ({"SLURM_NODEID": "x"}, "SLURM_NODEID=x"),
        ({"SLURM_NODEID": "2", "SLURM_NNODES": "2", "FM_MASTER": "a"}, "node 2 of 2"),
        ({"SLURM_NODEID": "0", "SLURM_NNODES": "2"}, "FM_MASTER"),
    ],
)
def test_what_does_not_fit(environment: dict[str, str], said: str) -> None:
    with pytest.raises(PlaceError, match=said):
        find_place(environment)


def test_a_damaged_list_of_hosts(tmp_path: Path) -> None:
    path = tmp_path / "resourceconfig.json"
    path.write_text("{")
    with pytest.raises(PlaceError, match="SageMaker's list"):
        find_place({"FM_SAGEMAKER_CONFIG": str(path)})
