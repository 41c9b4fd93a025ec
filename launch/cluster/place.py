"""Which node of a job this is, by what the engine tells it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fm.config.errors import UserError

SAGEMAKER_CONFIG = Path("/opt/ml/input/config/resourceconfig.json")
"""Where SageMaker lists the hosts of a job; the variable ``FM_SAGEMAKER_CONFIG`` names another place."""
FIRST_PORT = 29500


class PlaceError(UserError):
    """An environment that does not say which node this is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One node among those of a job."""

    engine: str
    nodes: int
    rank: int
    """Number of this node; 0 is where the others meet."""
    master: str
    """Name or address of node 0."""
    port: int = FIRST_PORT


def find_place(environment: Mapping[str, str] | None = None) -> Place:
    """The place of this process's node, from the environment that Slurm, Kubernetes, Kubeflow or SageMaker sets.

    Args:
        environment: variables; None: those of this process.

    Raises:
        PlaceError: no engine is recognised, or what it says does not fit together.
    """
    known = os.environ if environment is None else environment
    port = _number(known, "FM_PORT", FIRST_PORT)
    sagemaker = Path(known.get("FM_SAGEMAKER_CONFIG", SAGEMAKER_CONFIG))
    if "SLURM_NODEID" in known:
        nodes, rank = _number(known, "SLURM_NNODES", 1), _number(known, "SLURM_NODEID")
        found = Place(engine="slurm", nodes=nodes, rank=rank, master=known.get("FM_MASTER", ""), port=port)
    elif "PET_NODE_RANK" in known:
        nodes, rank = _number(known, "PET_NNODES", 1), _number(known, "PET_NODE_RANK")
        port = _number(known, "PET_MASTER_PORT", port)
        found = Place(engine="kubernetes", nodes=nodes, rank=rank, master=known.get("PET_MASTER_ADDR", ""), port=port)
    elif "JOB_COMPLETION_INDEX" in known:
        nodes, rank = _number(known, "FM_NODES", 1), _number(known, "JOB_COMPLETION_INDEX")
        found = Place(engine="kubernetes", nodes=nodes, rank=rank, master=known.get("FM_MASTER", ""), port=port)
    elif sagemaker.is_file():
        found = _sagemaker(sagemaker, port)
    else:
        raise PlaceError(
            "no Slurm, Kubernetes or SageMaker here: this command runs on the nodes of a job, see fm submit --help"
        )
    if not 0 <= found.rank < found.nodes:
        raise PlaceError(f"{found.engine} says that this is node {found.rank} of {found.nodes}")
    if found.nodes > 1 and not found.master:
        raise PlaceError(f"{found.engine}: the name of the first node is not set (FM_MASTER)")
    return found


def _sagemaker(path: Path, port: int) -> Place:
    try:
        listed = json.loads(path.read_text())
        hosts = sorted(listed["hosts"])
        rank = hosts.index(listed["current_host"])
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise PlaceError(f"{path}: cannot be read as SageMaker's list of hosts ({type(err).__name__})") from err
    return Place(engine="sagemaker", nodes=len(hosts), rank=rank, master=hosts[0], port=port)


def _number(known: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = known.get(name, "")
    if not text and default is not None:
        return default
    try:
        return int(text)
    except ValueError as err:
        raise PlaceError(f"{name}={text}: is not a number") from err
