from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import fm
from fm.config.errors import UserError
from fm.data.tokenizer import train_tokenizer
from fm.data.volume import VolumeError, read_nifti
from fm.models import FmConfig, FmModel
from fm.models.encoder import Encoder, EncoderError, untrained_like


def _scan(path: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(np.arange(40), np.arange(48), np.arange(12), indexing="ij")
    inside = ((x - 20) / 17) ** 2 + ((y - 24) / 21) ** 2 + ((z - 5.5) / 6) ** 2 < 1
    values = np.where(inside, 300 + 60 * rng.standard_normal(inside.shape), 0).astype(np.float32)
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


@pytest.fixture
def encoder(tiny_config: FmConfig) -> Encoder:
    tokenizer = train_tokenizer([(f"p{i}", "no mass is seen") for i in range(5)], 1000, 5, 12)
    tiny_config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    return Encoder(FmModel(tiny_config), tokenizer)


def test_the_readme_line_works_after_save_and_load(encoder: Encoder, tmp_path: Path) -> None:
    scan = _scan(tmp_path / "scan.nii.gz", 0)
    encoder.save(tmp_path / "export")
    loaded = fm.load_encoder(tmp_path / "export")
    embedding = loaded.embed(scan)
    assert embedding.shape == (16,) and np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)
    assert np.array_equal(embedding, encoder.embed(str(scan)))
    assert np.array_equal(loaded.embed_text("No mass."), encoder.embed_text("No mass."))
    assert np.allclose(loaded.model.embed_nifti(scan), embedding, atol=1e-6)


def test_an_export_reads_patches_of_another_size(encoder: Encoder, tmp_path: Path) -> None:
    scan = _scan(tmp_path / "scan.nii.gz", 0)
    encoder.save(tmp_path / "export")
    native = fm.load_encoder(tmp_path / "export", patch_voxels=(2, 4, 4))
    assert np.array_equal(native.embed(scan), encoder.embed(scan))
    finer = fm.load_encoder(tmp_path / "export", patch_voxels=(2, 2, 2))
    counts = [len(e.model.pack_series([[read_nifti(scan)]]).patches_TP) for e in (native, finer)]
    assert counts[1] > 3 * counts[0]
    assert np.linalg.norm(finer.embed(scan)) == pytest.approx(1, abs=1e-5)
    with pytest.raises(UserError, match="multiples of the cells"):
        fm.load_encoder(tmp_path / "export", patch_voxels=(2, 3, 4))


def test_one_many_and_read_already_agree(encoder: Encoder, tmp_path: Path) -> None:
    a, b = _scan(tmp_path / "a.nii", 0), _scan(tmp_path / "b.nii", 1)
    both = encoder.embed([a, read_nifti(b)])
    np.testing.assert_allclose(both, [encoder.embed(a), encoder.embed(b)], atol=1e-6)
    assert np.abs(both[0] - both[1]).max() > 1e-3
    assert encoder.embed([]).shape == (0, 16)
    study = encoder.embed_study([a, b])
    assert min(np.abs(study - both[0]).max(), np.abs(study - both[1]).max()) > 1e-4


def test_study_features_are_the_named_statistics(encoder: Encoder, tmp_path: Path) -> None:
    images = [read_nifti(_scan(tmp_path / f"{i}.nii", i)) for i in range(3)]
    found = encoder.encode_studies([images[:2], [], images[2:]])
    assert found.series_study.tolist() == [0, 0, 2]
    views = encoder.model.pack_series([images[:2], [], images[2:]])
    with torch.no_grad():
        raw = encoder.model(views, 3)
    first = sum(views.lengths[:2])
    tokens = raw.tokens_TD[:first]
    want = torch.cat([raw.class_SD[:2].mean(0), tokens.mean(0), tokens.max(0).values, raw.study_BD[0]])
    np.testing.assert_allclose(found.study[0], want.numpy(), atol=1e-5)
    own = raw.tokens_TD[: views.lengths[0]]
    alone = torch.cat([raw.class_SD[0], own.mean(0), own.max(0).values, raw.series_SD[0]])
    np.testing.assert_allclose(found.series[0], alone.numpy(), atol=1e-5)
    assert not found.study[1].any() and not found.projected[1].any()
    np.testing.assert_allclose(found.projected[0], encoder.embed_study(images[:2]), atol=1e-5)
    np.testing.assert_allclose(found.study[2], found.series[2], atol=1e-5)


def test_texts_one_by_one_equal_a_batch_and_an_empty_one_is_zero(encoder: Encoder) -> None:
    texts = ["no mass", "", *[f"mass number {i} is seen" for i in range(70)]]
    together = encoder.embed_text(texts)
    assert together.shape == (72, 16) and not together[1].any()
    np.testing.assert_allclose(
        together[[0, 71]], [encoder.embed_text(texts[0]), encoder.embed_text(texts[71])], atol=1e-5
    )


def test_untrained_encoders_follow_their_seed_and_touch_no_global_state(encoder: Encoder) -> None:
    state = torch.get_rng_state()
    a, b, c = untrained_like(encoder, 1), untrained_like(encoder, 1), untrained_like(encoder, 2)
    assert torch.equal(state, torch.get_rng_state())
    weights = [e.model.image.blocks[0].mlp.up.weight for e in (a, b, c, encoder)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[3])
    assert a.model.config.to_dict() == encoder.model.config.to_dict()


def test_what_is_not_there_is_refused_in_one_line(encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="no encoder there"):
        fm.load_encoder(tmp_path)
    encoder.save(tmp_path / "export")
    weights = tmp_path / "export" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(EncoderError, match="not a readable encoder") as refused:
        fm.load_encoder(tmp_path / "export")
    assert "\n" not in str(refused.value)
    with pytest.raises(EncoderError, match="tokenizer"):
        Encoder(encoder.model).embed_text("no mass")
    with pytest.raises(VolumeError, match="no such file"):
        encoder.embed(tmp_path / "absent.nii.gz")


def test_importing_fm_loads_no_torch() -> None:
    code = "import sys, fm; assert fm.__version__; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="load_decoder"):
        fm.load_decoder  # noqa: B018
