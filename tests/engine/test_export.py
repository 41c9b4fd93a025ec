from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import AutoModel

from fm.config.data import DataConfig
from fm.config.model import VitTextConfig
from fm.config.objective import JointConfig
from fm.config.trainer import Weights
from fm.engine.checkpoint import CheckpointError, CheckpointStore
from fm.engine.export import ExportError, export_model
from fm.objectives import StudentModule, build_student


@pytest.fixture
def student() -> StudentModule:
    torch.manual_seed(0)
    shape = VitTextConfig(
        patch_voxels=[2, 4, 4], dim=24, depth=1, heads=2, text_dim=16, text_depth=1, text_heads=2, embed_dim=16
    )
    return build_student(shape, JointConfig(prototypes=8, head_hidden_dim=8, head_bottleneck_dim=4), DataConfig(), 30)


@pytest.fixture
def run(tmp_path: Path, student: StudentModule) -> Path:
    """A run with checkpoints at steps 1 and 2; the teacher of step n holds n everywhere, the student −n."""
    run = tmp_path / "run"
    store = CheckpointStore(run / "checkpoints")
    state = {"stage": 2, "precision": "bf16", "world_size": 2, "dataset_id": "d4t4", "parameters": 1}
    for step in (1, 2):
        partial = store.begin(step)
        for name, value in (("teacher", step), ("student", -step)):
            filled = {key: torch.full_like(p, value) for key, p in student.named_parameters()}
            save_file(filled, partial / f"{name}.safetensors")
        student.fm.config.save_pretrained(partial / "model")
        (partial / "state.json").write_text(json.dumps({**state, "step": step}))
        store.commit(step, partial)
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": s, "loss": float(s)}) + "\n" for s in (1, 2)))
    (run / "tokenizer").mkdir()
    (run / "tokenizer" / "tokenizer.json").write_text("{}")
    return run


@pytest.mark.parametrize(
    ("step", "weights", "expected"), [(None, Weights.teacher, 2), (1, Weights.teacher, 1), (None, Weights.student, -2)]
)
def test_the_chosen_weights_load_in_plain_transformers(
    step: int | None, weights: Weights, expected: int, run: Path, tmp_path: Path, student: StudentModule
) -> None:
    out = export_model(run, tmp_path / "out", step, weights=weights, facts={"commit": "c0ffee"})
    model = AutoModel.from_pretrained(out)
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in student.fm.named_parameters()}
    assert all((p == expected).all() and p.dtype == torch.float32 for p in model.parameters())
    assert (out / "tokenizer.json").is_file() and not list(out.glob("*.bin")) and not list(out.glob("*.pt"))
    card = (out / "README.md").read_text()
    assert "| dataset id | d4t4 |" in card and "| commit | c0ffee |" in card
    assert f"| training loss | {float(step or 2):.4f} |" in card
    assert "license: unknown" in card and "| seed |" not in card


def test_the_card_names_the_model_but_no_place(run: Path, tmp_path: Path) -> None:
    values = {
        "data": {"url": "/hospital/shards", "cache_dir": "", "global_batch_size": 8, "contrast_weights": {"t1w": 2.0}},
        "model": {"dim": 24, "text_from": "C:\\models\\bert"},
        "trainer": {"checkpoint_url": "s3://bucket/runs/x"},
    }
    facts = {"commit": "c0ffee", "licence": "cc-by-nc-4.0", "configuration": values}
    card = (export_model(run, tmp_path / "out", facts=facts) / "README.md").read_text()
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "transformers",
        "license": "cc-by-nc-4.0",
        "tags": ["MRI", "3D", "feature-extraction"],
    }
    shown = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert shown == {
        "model": {"dim": 24},
        "data": {"cache_dir": "", "global_batch_size": 8, "contrast_weights": {"t1w": 2.0}},
    }
    assert "hospital" not in card and "bert" not in card and "bucket" not in card


def test_a_folder_that_holds_something_is_left_alone(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(ExportError, match="not empty"):
        export_model(run, out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_a_damaged_checkpoint_is_not_exported(run: Path, tmp_path: Path) -> None:
    store = CheckpointStore(run / "checkpoints")
    path = store.folder(2) / "teacher.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    export_model(run, tmp_path / "older")
    assert "| steps | 1 |" in (tmp_path / "older" / "README.md").read_text()
    with pytest.raises(CheckpointError, match="SHA-256"):
        export_model(run, tmp_path / "out", 2)
    with pytest.raises(CheckpointError, match=r"step=7: not committed in .*; the steps there: 1, 2$"):
        export_model(run, tmp_path / "out", 7)
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_fit_their_configuration_are_refused(
    run: Path, tmp_path: Path, student: StudentModule
) -> None:
    store = CheckpointStore(run / "checkpoints")
    partial = store.begin(3)
    weights = {key: p.detach().clone() for key, p in student.named_parameters()}
    weights.pop("fm.image_projection.weight")
    save_file(weights, partial / "teacher.safetensors")
    student.fm.config.save_pretrained(partial / "model")
    store.commit(3, partial)
    with pytest.raises(ExportError, match=r"image_projection\.weight does not fit"):
        export_model(run, tmp_path / "out")
