"""Files of earlier versions load, and exports keep their form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from fm.config.objective import JointConfig
from fm.models import FmConfig, FmModel
from fm.objectives import JointStudent


def _former(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state as the first version named and shaped it."""
    former = {}
    for name, value in state.items():
        name = name.replace("image.prefix.tokens", "image.prefix").replace("head.prototypes.weight", "head.prototypes")
        former[name] = value.reshape(()) if name.endswith(("scale.log_scale", "scale.bias")) else value
    return former


def test_an_export_is_written_and_read_in_its_first_form(tiny_model: FmModel, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    tiny_model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    former = _former(state)
    assert stored.keys() == former.keys() and "image.prefix" in stored and stored["scale.bias"].ndim == 0
    assert all(torch.equal(stored[name], former[name]) for name in stored)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    loaded.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == former.keys()


def test_an_export_that_calls_its_parameters_as_the_model_does_loads_too(tiny_model: FmModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path)
    state = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = AutoModel.from_pretrained(tmp_path)
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


def test_a_former_checkpoint_of_a_student_loads(tiny_config: FmConfig, tiny_model: FmModel) -> None:
    sizes = JointConfig(prototypes=12, head_hidden_dim=16, head_bottleneck_dim=6)
    student, other = JointStudent(tiny_model, sizes), JointStudent(FmModel(tiny_config), sizes)
    former = _former(student.state_dict())
    assert "fm.image.prefix" in former and "head.prototypes" in former
    other.load_state_dict(former)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), other.parameters(), strict=True))
    former.pop("head.prototypes")
    with pytest.raises(RuntimeError, match=r"head\.prototypes"):
        other.load_state_dict(former)
