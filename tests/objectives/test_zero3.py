"""What ZeRO-3 needs of the modules: it gathers a leaf's weights before the leaf's forward and frees them after it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fm.batch import StudyBatch
from fm.config.data import DataConfig
from fm.config.masking import HiddenFromStudent, MaskedPatchesConfig, PredictorConfig, WidePredictorConfig
from fm.config.model import PatchStem, VitTextConfig
from fm.config.objective import JointConfig, MaeConfig, ObjectiveConfig, TextLoss
from fm.objectives import build_objective, build_student, make_teacher

GOLDEN = [0.10668604131205939, 2.419484570622444, -0.6297400372495758, 0.9061490437015891, -3.47118004783988]
SIZES = {"prototypes": 12, "head_hidden_dim": 16, "head_bottleneck_dim": 6}
SMALL = PredictorConfig(dim=16, depth=1, heads=2)

RANK_SCRIPT = """
import os, sys, torch
rank, folder, port, stage = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
from fm.config.trainer import Device
from fm.objectives import build_objective, build_student, make_teacher
from fm.parallel.collectives import all_gather_with_grad, shutdown
from fm.parallel.group import join
join(Device.cpu, 120)
import deepspeed

class Engine(torch.nn.Module):
    def __init__(self, student):
        super().__init__()
        self.student = student

    def forward(self, compute):
        return compute()

job = torch.load(f"{folder}/job.pt", weights_only=False)
torch.manual_seed(3)
student = build_student(job["model"], job["objective"], job["data"], 40, [0.4] * 7)
teacher, objective = make_teacher(student), build_objective(job["objective"])
config = {
    "train_micro_batch_size_per_gpu": 4,
    "zero_allow_untested_optimizer": True,
    "zero_optimization": {"stage": stage, "overlap_comm": False, "stage3_param_persistence_threshold": 0},
}
optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
engine, *_ = deepspeed.initialize(model=Engine(student), optimizer=optimizer, config=config)
losses = []
for _ in range(3):
    loss, _ = engine(lambda: objective(student, teacher, job["batch"], all_gather_with_grad))
    engine.backward(loss)
    engine.step()
    losses.append(loss.item())
torch.save(losses, f"{folder}/stage{stage}.{rank}.pt")
shutdown()
"""


@pytest.fixture
def model(tiny_model: VitTextConfig) -> VitTextConfig:
    """Every kind of module that a configuration can build."""
    tiny_model.patch_stem, tiny_model.cell_voxels, tiny_model.cell_channels = PatchStem.conv, [1, 2, 2], 4
    tiny_model.layer_scale, tiny_model.text_window = 0.5, 3
    return tiny_model


@pytest.mark.parametrize("way", [None, *HiddenFromStudent])
def test_every_parameter_sits_in_a_leaf_whose_forward_runs_and_gives_no_parameter_away(
    way: HiddenFromStudent | None, model: VitTextConfig, data: DataConfig, make_batch: Callable[..., StudyBatch]
) -> None:
    patches = MaskedPatchesConfig(weight=1.0, student=way, predictor=SMALL) if way else MaskedPatchesConfig()
    objective = JointConfig(image_text=TextLoss.siglip, phrase_weight=1.0, masked_patches=patches, **SIZES)  # type: ignore[arg-type]
    student = build_student(model, objective, data, 40, [0.4] * 7)
    owners = {name: part for name, part in student.named_modules() if list(part.parameters(recurse=False))}
    assert [name for name, part in owners.items() if list(part.children())] == []
    assert [name for name, p in student.named_parameters() if p.ndim == 0] == []
    called: set[str] = set()

    def see(name: str) -> Callable[[nn.Module, object, Tensor | tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
            called.add(name)
            memory = {p.untyped_storage().data_ptr() for p in module.parameters()}
            for out in [output] if isinstance(output, Tensor) else output:
                assert out.untyped_storage().data_ptr() not in memory, name

        return hook

    for name, part in owners.items():
        part.register_forward_hook(see(name))
    batch = make_batch(4, [0, 0, 1, 2], [True, True, True, False])
    build_objective(objective)(student, make_teacher(build_student(model, objective, data, 40, [0.4] * 7)), batch)
    assert called == set(owners)


def test_equal_seeds_give_the_weights_that_they_always_gave(model: VitTextConfig, data: DataConfig) -> None:
    """Values of the version before the parameters moved into leaves; order is that of the optimiser's flat vectors."""
    torch.manual_seed(3)
    student = build_student(model, JointConfig(**SIZES), data, 40, [0.4] * 7)  # type: ignore[arg-type]
    names = [name for name, _ in student.named_parameters()]
    assert names[0] == "fm.image.prefix.tokens" and names[-7] == "head.prototypes.weight"
    found = [p.double().sum().item() for p in student.parameters()]
    at = [names.index(n) for n in ("fm.image.stem.cell.weight", "fm.pool.hidden.weight", "head.down.weight")]
    assert [found[0], *(found[i] for i in at), found[-7]] == pytest.approx(GOLDEN, rel=1e-6)


@pytest.mark.full
@pytest.mark.parametrize(
    "objective",
    [
        JointConfig(
            phrase_weight=1.0,
            masked_patches=MaskedPatchesConfig(weight=1.0, student=HiddenFromStudent.dropped, predictor=SMALL),
            **SIZES,  # type: ignore[arg-type]
        ),
        MaeConfig(decoder=WidePredictorConfig(dim=16, depth=1, heads=2)),
    ],
    ids=["joint", "mae"],
)
def test_zero_3_trains_as_zero_2(
    objective: ObjectiveConfig,
    model: VitTextConfig,
    data: DataConfig,
    make_batch: Callable[..., StudyBatch],
    tmp_path: Path,
) -> None:
    batch = make_batch(4, [0, 0, 1, 2], [True, True, True, False])
    torch.save({"model": model, "data": data, "objective": objective, "batch": batch}, tmp_path / "job.pt")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    for stage in (2, 3):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        command = [sys.executable, "-c", RANK_SCRIPT]
        ranks = [
            subprocess.Popen([*command, str(rank), str(tmp_path), port, str(stage)], env=environment)
            for rank in range(2)
        ]
        assert [process.wait(timeout=240) for process in ranks] == [0, 0]
    two, three = (torch.load(tmp_path / f"stage{stage}.0.pt") for stage in (2, 3))
    assert three == pytest.approx(two, rel=1e-6) and two[2] != two[0]
