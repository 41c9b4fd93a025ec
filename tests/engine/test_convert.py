from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fm.engine.checkpoint import CheckpointError, CheckpointStore
from fm.engine.convert import convert_layout

MOMENTS = ("exp_avg", "exp_avg_sq")
SIZES = {"a.weight": 17, "b.bias": 1, "c.weight": 30}


def truth(moment: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(moment))
    return {name: torch.rand(size, generator=generator) for name, size in SIZES.items()}


def write_shards(folder: Path, cuts: list[dict[str, tuple[int, int]]]) -> None:
    """One file of moments for each cut: by parameter its first and last element."""
    for number, cut in enumerate(cuts):
        tensors = {
            f"{m}/{name}": truth(m)[name][a:b] for m in ("exp_avg", "exp_avg_sq") for name, (a, b) in cut.items()
        }
        tensors |= {f"step/{name}": torch.tensor([7.0]) for name in cut}
        starts = json.dumps({name: a for name, (a, _) in cut.items()})
        save_file(tensors, folder / f"moments-{number:05d}-of-{len(cuts):05d}.safetensors", {"starts": starts})


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """A step of two ranks, one of which holds the end of a parameter whose start is the other's."""
    store = CheckpointStore(tmp_path / "checkpoints")
    partial = store.begin(5)
    write_shards(partial, [{"a.weight": (0, 11), "b.bias": (0, 1)}, {"a.weight": (11, 17), "c.weight": (0, 30)}])
    save_file({"a.weight": torch.ones(3)}, partial / "student.safetensors")
    (partial / "model").mkdir()
    (partial / "model" / "config.json").write_text("{}")
    state = {"step": 5, "stage": 2, "precision": "fp32", "world_size": 2, "dataset_id": "d", "parameters": 48}
    (partial / "state.json").write_text(json.dumps(state))
    store.commit(5, partial)
    return store


def whole(folder: Path, ranks: int) -> dict[str, torch.Tensor]:
    """Every moment as one vector, put together from all files; NaN where none holds an element."""
    found = {f"{m}/{name}": torch.full((n,), torch.nan) for m in MOMENTS for name, n in SIZES.items()}
    for path in sorted(folder.glob(f"moments-*-of-{ranks:05d}.safetensors")):
        with safe_open(path, "pt") as file:
            for name, start in json.loads(file.metadata()["starts"]).items():
                assert file.get_tensor(f"step/{name}").tolist() == [7.0]
                for moment in MOMENTS:
                    part = file.get_tensor(f"{moment}/{name}")
                    found[f"{moment}/{name}"][start : start + len(part)] = part
    return found


def test_any_number_of_shards_holds_the_same_moments(store: CheckpointStore, tmp_path: Path) -> None:
    folder = store.verify(5)
    for ranks in (3, 1, 7, 2):
        target = CheckpointStore(tmp_path / f"to{ranks}")
        folder = convert_layout(folder, target, ranks)
        assert target.newest(required=True) == (5, folder) and len(list(folder.glob("moments-*"))) == ranks
        for name, value in whole(folder, ranks).items():
            moment, _, parameter = name.partition("/")
            assert torch.equal(value, truth(moment)[parameter]), (ranks, name)
        assert target.facts(5)["world_size"] == ranks and target.facts(5)["stage"] == 2
        assert (folder / "model" / "config.json").is_file() and (folder / "student.safetensors").is_file()
        counts = [_elements(path) for path in sorted(folder.glob("moments-*"))]
        assert sum(counts) == 48 and max(counts) == -(-48 // ranks), "the shards are alike"


def _elements(path: Path) -> int:
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith("exp_avg/")]  # noqa: SIM118 - it is no mapping
        return sum(file.get_tensor(name).numel() for name in names)


def test_moments_with_a_gap_are_refused(tmp_path: Path, store: CheckpointStore) -> None:
    folder = store.verify(5)
    write_shards(folder, [{"a.weight": (0, 11), "b.bias": (0, 1)}, {"a.weight": (12, 17), "c.weight": (0, 30)}])
    with pytest.raises(CheckpointError, match=r"of a\.weight is there for 16 of 17 elements"):
        convert_layout(folder, CheckpointStore(tmp_path / "to"), 1)
